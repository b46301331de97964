(* The gradient of a decay as a sum over the pairs that it weighs: nothing is subtracted.

   Models kernels/gradients.py: `_outside`, `_where_all_decay_alike`; kernels/tree.py: `down` (the pairs that it adds
   up, not the order in which it does, block by block); for slices of every length. *)

From Mixerzoo Require Export Gradients.

Section Straddle.
Context {C : core} {K : dual C}.
Notation Q := (cotangents K).
Variables (o : order) (steps : nat -> step Q).
Implicit Types (S : state C) (G : state (costates K)).

Local Notation decays := (fun t => decay (steps t)).
Local Notation a t := (decay (steps t)).
Local Notation x t := (write (steps t)).
Local Notation g t := (ask (steps t)).

(* Of writes up to t, those that the decay of t weighs; of reads from t on. *)
Definition stop t := if key_decayed o then t + 1 else t.
Definition from t := if query_decayed o then t else t + 1.

(* The gradient of the state before steps i .. i+n, read by any state Z: what Z would add to the loss. *)
Lemma read_of_gradient n : forall i Z G,
  pair Z (gradient_before o (slice steps i n) G)
  = pair (Z ◁ product decays i n) G ⊕ sum (fun u => pair (Z ◁ prefix o steps i u) (g u)) i n.
Proof.
  induction n as [|n IH]; intros i Z G.
  - cbn -[plus]. now rewrite through_one, plus_zero.
  - unfold slice in *. cbn [seq map]. rewrite gradient_before_next. cbn [product sum].
    assert (first : prefix o steps i i = if query_decayed o then a i else one).
    { unfold prefix, last_decay. destruct (query_decayed o).
      - replace (Datatypes.S i - i) with 1 by lia. apply compose_one.
      - now rewrite Nat.sub_diag. }
    assert (others : sum (fun u => pair (Z ◁ prefix o steps i u) (g u)) (Datatypes.S i) n
      = sum (fun u => pair (Z ◁ a i ◁ prefix o steps (Datatypes.S i) u) (g u)) (Datatypes.S i) n).
    { apply sum_ext. intros u here. rewrite <- through_compose. do 2 f_equal.
      unfold prefix, last_decay. destruct (query_decayed o).
      - now replace (Datatypes.S u - i) with (Datatypes.S (Datatypes.S u - Datatypes.S i)) by lia.
      - now replace (u - i) with (Datatypes.S (u - Datatypes.S i)) by lia. }
    rewrite others, first, through_compose, plus_swap, <- IH.
    set (G' := gradient_before o _ G). unfold back.
    destruct o; unfold after, kept, turned; cbn -[plus pair];
      rewrite ?through_one, ?through_plus, ?pair_plus, <- ?pair_turn; same_terms.
Qed.

(* The state before t's decay, decayed: through all decays up to t's. *)
Lemma state_at_decay S i t :
  i <= t ->
  (if key_decayed o then state_after o steps S i (t - i) ⊕ x t else state_after o steps S i (t - i)) ◁ a t
  = (S ◁ product decays i (t + 1 - i)) ⊕ sum (fun s => x s ◁ suffix o steps s (t + 1)) i (stop t - i).
Proof.
  intros within. rewrite <- carry_is_walk. unfold carry.
  assert (whole : S ◁ product decays i (t - i) ◁ a t = S ◁ product decays i (t + 1 - i)).
  { rewrite <- through_compose. f_equal. replace (t + 1 - i) with (Datatypes.S (t - i)) by lia.
    rewrite product_last. now replace (i + (t - i)) with t by lia. }
  assert (before : sum (fun s => x s ◁ suffix o steps s (i + (t - i))) i (t - i) ◁ a t
    = sum (fun s => x s ◁ suffix o steps s (t + 1)) i (t - i)).
  { rewrite through_sum. apply sum_ext. intros s here. rewrite <- through_compose. f_equal.
    replace (i + (t - i)) with t by lia. rewrite Nat.add_1_r. symmetry. apply suffix_next. lia. }
  unfold stop. destruct (key_decayed o) eqn:kd; rewrite !through_plus, whole, before; [|reflexivity].
  replace (t + 1 - i) with (Datatypes.S (t - i)) by lia. rewrite sum_last, <- plus_assoc.
  replace (i + (t - i)) with t by lia. do 2 f_equal. rewrite Nat.add_1_r, suffix_own.
  unfold kept. now rewrite kd.
Qed.

(* The gradient of the decay at t of a slice: what the decay weighs of S alone, of S read inside, of writes that
   leave the slice, and of pairs of a write and a read inside. *)
Theorem decay_is_pairs S G i n t :
  i <= t < i + n ->
  decay_gradient o (state_after o steps S i (t - i)) (steps t)
    (gradient_before o (slice steps (t + 1) (i + n - (t + 1))) G)
  = pair (S ◁ product decays i n) G
    ⊕ sum (fun u => pair (S ◁ prefix o steps i u) (g u)) (from t) (i + n - from t)
    ⊕ sum (fun s => pair (x s ◁ suffix o steps s (i + n)) G) i (stop t - i)
    ⊕ sum (fun s => sum (fun u => pair (x s ◁ segment o steps s u) (g u)) (from t) (i + n - from t))
        i (stop t - i).
Proof.
  intros within. unfold decay_gradient.  rewrite state_at_decay by lia.
  set (m := i + n - (t + 1)).
  (* What any Z gives to the gradient of the state after t's decay. *)
  assert (later : forall Z,
    pair Z (if query_decayed o
            then gradient_before o (slice steps (t + 1) m) G ⊕ g t
            else gradient_before o (slice steps (t + 1) m) G)
    = pair (Z ◁ product decays (t + 1) m) G
      ⊕ sum (fun u => pair (Z ◁ product decays (t + 1) (last_decay o u - (t + 1))) (g u))
          (from t) (i + n - from t)).
  { intros Z. unfold from, last_decay. destruct (query_decayed o) eqn:qd.
    - rewrite pair_plus, read_of_gradient. replace (i + n - t) with (Datatypes.S m) by lia. cbn [sum].
      replace (Datatypes.S t - (t + 1)) with 0 by lia. cbn [product]. rewrite through_one.
      rewrite <- plus_assoc. f_equal. rewrite plus_comm. f_equal. replace (Datatypes.S t) with (t + 1) by lia.
      apply sum_ext. intros u here. unfold prefix, last_decay. now rewrite qd.
    - rewrite read_of_gradient. fold m. f_equal. apply sum_ext. intros u here. unfold prefix, last_decay.
      now rewrite qd. }
  rewrite plus_pair, !later, <- !through_compose. clear later.
  assert (meet : forall k, t + 1 <= k ->
    product decays i (t + 1 - i) ⊙ product decays (t + 1) (k - (t + 1)) = product decays i (k - i)).
  { intros k after_t. replace (k - i) with ((t + 1 - i) + (k - (t + 1))) by lia. rewrite product_split.
    now replace (i + (t + 1 - i)) with (t + 1) by lia. }
  set (P := sum (fun s => x s ◁ suffix o steps s (t + 1)) i (stop t - i)).
  assert (onwards : forall k, t + 1 <= k ->
    P ◁ product decays (t + 1) (k - (t + 1))
    = sum (fun s => x s ◁ product decays (first_decay o s) (k - first_decay o s)) i (stop t - i)).
  { intros k after_t. unfold P. rewrite through_sum. apply sum_ext. intros s here.
    rewrite <- through_compose. f_equal.
    assert (first_decay o s <= t + 1) by (unfold stop, first_decay in *; destruct (key_decayed o); lia).
    unfold suffix. replace (k - first_decay o s) with ((t + 1 - first_decay o s) + (k - (t + 1))) by lia.
    rewrite product_split. now replace (first_decay o s + (t + 1 - first_decay o s)) with (t + 1) by lia. }
  assert (late : forall u, from t <= u -> t + 1 <= last_decay o u)
    by (intros u; unfold from, last_decay; destruct (query_decayed o); lia).
  unfold m. rewrite (meet (i + n)), (onwards (i + n)) by lia.
  replace (i + n - i) with n by lia. rewrite <- !plus_assoc. f_equal. f_equal; [|f_equal].
  - apply sum_ext. intros u here. rewrite <- through_compose, meet by (apply late; lia). reflexivity.
  - apply (of_sum _ _ _ (pair_left C K G)).
  - rewrite <- sum_sums. apply sum_ext. intros u here. rewrite onwards by (apply late; lia).
    apply (of_sum _ _ _ (pair_left C K (g u))).
Qed.

(* What a write s of a slice gives to the loss: by the state that leaves the slice, and by the reads after it. *)
Theorem write_is_pairs G i n s :
  i <= s < i + n ->
  pair (x s) (write_gradient o (gradient_before o (slice steps (s + 1) (i + n - (s + 1))) G) (steps s))
  = pair (x s ◁ suffix o steps s (i + n)) G
    ⊕ sum (fun u => pair (x s ◁ segment o steps s u) (g u)) (s + 1) (i + n - (s + 1))
    ⊕ (if strict o then zero else pair (x s ◁ segment o steps s s) (g s)).
Proof.
  intros within. set (m := i + n - (s + 1)). set (G' := gradient_before o _ G).
  assert (parts : pair (x s) (write_gradient o G' (steps s))
    = pair (x s ◁ suffix o steps s (s + 1)) G'
      ⊕ (if strict o then zero else pair (x s ◁ segment o steps s s) (g s))).
  { rewrite Nat.add_1_r, suffix_own. unfold write_gradient, seen, kept.
    replace (if strict o then zero else pair (x s ◁ segment o steps s s) (g s))
      with (pair (if strict o then zero else x s ◁ segment o steps s s) (g s))
      by (destruct (strict o); [apply zero_pair|reflexivity]).
    rewrite own_segment. destruct o; unfold faded, own, turned; cbn -[plus pair];
      now rewrite ?through_one, ?pair_plus, ?pair_zero, ?zero_pair, <- ?pair_turn. }
  rewrite parts. f_equal. unfold G'. rewrite read_of_gradient, <- through_compose.
  assert (first_decay o s <= s + 1) by (unfold first_decay; destruct (key_decayed o); lia).
  assert (whole : suffix o steps s (s + 1) ⊙ product decays (s + 1) m = suffix o steps s (i + n)).
  { unfold suffix. replace (i + n - first_decay o s) with ((s + 1 - first_decay o s) + m) by lia.
    rewrite product_split. now replace (first_decay o s + (s + 1 - first_decay o s)) with (s + 1) by lia. }
  rewrite whole. f_equal. apply sum_ext. intros u later.
  now rewrite <- through_compose, segment_splits by lia.
Qed.

(* ---------------------------------------------------------------- inside a slice, by the levels of the tree *)

(* `descend`: gradients padded with zeros; the diagonal, and at each level the sum over reads from t on in a
   right half, over writes up to t in a left half. *)
Variables i n : nat.
Definition inside_pair s u : numbers K :=
  pair (x (i + s) ◁ segment o steps (i + s) (i + u)) (if u <? n then g (i + u) else zero).

(* The reads after a write: at each level, a write in a left half and the reads of the right half. *)
Theorem writes_by_tree s :
  s < n ->
  sum (fun u => pair (x (i + s) ◁ segment o steps (i + s) u) (g u)) (i + s + 1) (i + n - (i + s + 1))
  = sum (fun level => is_met (inside_pair s) s (2 ^ level)) 0 (Nat.log2_up n).
Proof.
  intros within. rewrite halves_are_visited_all by easy. set (E := 2 ^ Nat.log2_up n).
  assert (enough : n <= E) by apply covers.
  replace (E - (s + 1)) with ((n - (s + 1)) + (E - n)) by lia.
  rewrite sum_split, (sum_zero _ (E - n)), plus_zero.
  - rewrite <- Nat.add_assoc, sum_shift. replace (i + n - (i + (s + 1))) with (n - (s + 1)) by lia.
    apply sum_ext. intros u later. unfold inside_pair. now destruct (Nat.ltb_spec u n); [|lia].
  - intros u beyond. unfold inside_pair. destruct (Nat.ltb_spec u n); [lia|apply pair_zero].
Qed.

Theorem inside_by_tree t :
  t < n ->
  sum (fun s => sum (fun u => pair (x s ◁ segment o steps s u) (g u)) (from (i + t)) (i + n - from (i + t)))
    i (stop (i + t) - i)
  = (if andb (query_decayed o) (key_decayed o) then pair (x (i + t) ◁ a (i + t)) (g (i + t)) else zero)
    ⊕ sum (fun level => straddles inside_pair t (stop t) (from t) (2 ^ level)) 0 (Nat.log2_up n).
Proof.
  intros within.
  rewrite halves_straddle_all by
    (try (unfold stop, from; destruct (key_decayed o), (query_decayed o)); lia).
  unfold straddling. set (E := 2 ^ Nat.log2_up n).
  assert (enough : n <= E) by apply covers.
  assert (starts : from (i + t) = i + from t) by (unfold from; destruct (query_decayed o); lia).
  assert (stops : stop (i + t) - i = stop t) by (unfold stop; destruct (key_decayed o); lia).
  assert (range : t <= from t <= t + 1 /\ t <= stop t <= t + 1)
    by (unfold from, stop; destruct (query_decayed o), (key_decayed o); lia).
  rewrite starts, stops, Nat.sub_0_r.
  (* Pairs of one step, which only occur where t = s = u. *)
  assert (rows : forall s, s < stop t ->
    sum (fun u => pair (x (i + s) ◁ segment o steps (i + s) u) (g u)) (i + from t) (i + n - (i + from t))
    = (if andb (s =? t) (query_decayed o) then pair (x (i + t) ◁ a (i + t)) (g (i + t)) else zero)
      ⊕ sum (earlier inside_pair s) (from t) (E - from t)).
  { intros s before.
    rewrite sum_shift. replace (i + n - (i + from t)) with (n - from t) by lia.
    replace (E - from t) with ((n - from t) + (E - n)) by lia. rewrite sum_split.
    replace (sum (earlier inside_pair s) (from t + (n - from t)) (E - n)) with (@zero (numbers K)).
    2: { symmetry. apply sum_zero. intros u beyond. unfold earlier, inside_pair.
         destruct (Nat.ltb_spec u n); [lia|]. rewrite pair_zero. now destruct (s <? u). }
    rewrite plus_zero.
    destruct (Nat.eqb_spec s t) as [->|other]; simpl andb.
    - unfold from, stop in *. destruct (query_decayed o) eqn:qd.
      + destruct (key_decayed o) eqn:kd; [|lia].
        replace (n - t) with (Datatypes.S (n - (t + 1))) by lia. cbn [sum]. f_equal.
        * do 2 f_equal. unfold segment, first_decay, last_decay. rewrite kd, qd.
          replace (Datatypes.S (i + t) - (i + t)) with 1 by lia. apply compose_one.
        * unfold earlier at 1. rewrite Nat.ltb_irrefl, zero_plus. apply sum_ext. intros u here.
          unfold earlier, inside_pair.
          now destruct (Nat.ltb_spec t u), (Nat.ltb_spec u n); try lia.
      + rewrite zero_plus. apply sum_ext. intros u here. unfold earlier, inside_pair.
        now destruct (Nat.ltb_spec t u), (Nat.ltb_spec u n); try lia.
    - rewrite zero_plus. apply sum_ext. intros u here. unfold earlier, inside_pair.
      now destruct (Nat.ltb_spec s u), (Nat.ltb_spec u n); try lia. }
  rewrite <- (Nat.add_0_r i) at 1. rewrite sum_shift.
  erewrite sum_ext; [|intros s here; apply rows; lia].
  rewrite sum_plus. f_equal.
  unfold stop. destruct (key_decayed o) eqn:kd.
  - rewrite Nat.add_1_r, sum_last, sum_zero.
    + rewrite Nat.add_0_l, Nat.eqb_refl, zero_plus. now destruct (query_decayed o).
    + intros s here. now destruct (Nat.eqb_spec s t); [lia|].
  - rewrite sum_zero; [now destruct (query_decayed o)|].
    intros s here. now destruct (Nat.eqb_spec s t); [lia|].
Qed.

End Straddle.
