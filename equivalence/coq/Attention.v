(* The parallel form, and a chunk: what every step reads, by the weights of all steps before it.

   Models kernels/forms.py: `segment_sums`, `causal`, `weights`, `attend`, `prefix`, `suffix`, `read_entry`,
   `carry`.
   A slice is steps i .. i+n of a sequence of any length. *)

From Mixerzoo Require Export Orders.

Section Attention.
Context {C : core} {Q : reads C}.
Variables (o : order) (steps : nat -> step Q).

Let a t := decay (steps t).
Let x t := write (steps t).

(* The first step whose decay the write of s goes through; the first whose decay the read of t does not. *)
Definition first_decay s := if key_decayed o then s else S s.
Definition last_decay t := if query_decayed o then S t else t.

(* `prefix(la, order.query_decayed)`, `suffix(la, order.key_decayed)` and `segment_sums`. *)
Definition prefix i t := product a i (last_decay t - i).
Definition suffix s stop := product a (first_decay s) (stop - first_decay s).
Definition segment s t := product a (first_decay s) (last_decay t - first_decay s).
Definition causal s t := if strict o then s <? t else s <=? t.

(* The state after n steps from i, and what step t reads. *)
Fixpoint state_after (S : state C) (i n : nat) : state C :=
  match n with
  | 0 => S
  | Datatypes.S n => after o (state_after S i n) (steps (i + n))
  end.
Definition reads_at S i t : state C := seen o (state_after S i (t - i)) (steps t).
Definition outputs S i n : list (output Q) := map (fun t => read (ask (steps t)) (reads_at S i t)) (seq i n).

Lemma state_after_next n : forall S i,
  state_after S i (1 + n) = state_after (after o S (steps i)) (1 + i) n.
Proof.
  induction n as [|n IH]; intros S i.
  - simpl. now rewrite Nat.add_0_r.
  - change (after o (state_after S i (1 + n)) (steps (i + (1 + n)))
      = after o (state_after (after o S (steps i)) (1 + i) n) (steps (1 + i + n))).
    rewrite IH. do 2 f_equal. lia.
Qed.

(* These are the outputs and the state of `walk`. *)
Theorem walk_is n : forall S i, walk o S (slice steps i n) = (outputs S i n, state_after S i n).
Proof.
  induction n as [|n IH]; intros S i; [reflexivity|].
  unfold walk, slice in *. cbn [seq map Loop.walk].
  rewrite flags_say_all, IH, <- state_after_next. f_equal.
  unfold outputs. cbn [seq map app]. f_equal.
  - unfold reads_at. now rewrite Nat.sub_diag.
  - apply map_ext_in. intros t within. apply in_seq in within. unfold reads_at.
    replace (t - i) with (1 + (t - (1 + i))) by lia. now rewrite state_after_next.
Qed.

(* ---------------------------------------------------------------- weights *)

Lemma suffix_next s stop : s < stop -> suffix s (S stop) = suffix s stop ⊙ a stop.
Proof.
  intros before. unfold suffix, first_decay. destruct (key_decayed o).
  - replace (S stop - s) with (S (stop - s)) by lia. rewrite product_last. do 2 f_equal. lia.
  - replace (S stop - S s) with (S (stop - S s)) by lia. rewrite product_last. do 2 f_equal. lia.
Qed.

Lemma suffix_own s : x s ◁ suffix s (S s) = kept o (steps s).
Proof.
  unfold suffix, first_decay, kept. destruct (key_decayed o).
  - replace (S s - s) with 1 by lia. simpl. now rewrite compose_one.
  - rewrite Nat.sub_diag. apply through_one.
Qed.

(* The pair of a read and an earlier write is weighed by the decays between them, in two factors that meet
   anywhere between them. *)
Theorem segment_splits s t m : s < m <= t -> suffix s m ⊙ prefix m t = segment s t.
Proof.
  intros between. unfold suffix, prefix, segment, first_decay, last_decay.
  destruct (key_decayed o), (query_decayed o);
    match goal with
    | |- product a ?f ?l ⊙ product a m ?k = product a ?f ?n =>
        replace n with (l + k) by lia; replace (product a m k) with (product a (f + l) k) by (f_equal; lia)
    end; now rewrite product_split.
Qed.

Lemma segment_to_here s t : s < t -> segment s t = suffix s t ⊙ faded o (steps t).
Proof.
  intros before. unfold segment, suffix, faded, first_decay, last_decay.
  destruct (query_decayed o); [|now rewrite compose_one].
  set (f := if key_decayed o then s else S s). assert (f <= t) by (unfold f; destruct (key_decayed o); lia).
  clearbody f.
  replace (S t - f) with (S (t - f)) by lia. rewrite product_last. now replace (f + (t - f)) with t by lia.
Qed.

Lemma own_segment t : (if strict o then zero else x t ◁ segment t t) = own o (steps t).
Proof.
  unfold own, segment, first_decay, last_decay. destruct (strict o); [reflexivity|].
  destruct (query_decayed o), (key_decayed o); simpl andb; cbv iota.
  - replace (S t - t) with 1 by lia. simpl. now rewrite compose_one.
  - rewrite Nat.sub_diag. apply through_one.
  - rewrite Nat.sub_diag. apply through_one.
  - replace (t - S t) with 0 by lia. apply through_one.
Qed.

(* ---------------------------------------------------------------- carry: the state after a slice *)

Definition carry S i n : state C := (S ◁ product a i n) ⊕ sum (fun s => x s ◁ suffix s (i + n)) i n.

Theorem carry_is_walk S i n : carry S i n = state_after S i n.
Proof.
  induction n as [|n IH]; unfold carry.
  - simpl. now rewrite through_one, plus_zero.
  - cbn [state_after]. rewrite <- IH. unfold carry, after.
    rewrite product_last, sum_last, through_compose, through_plus, through_sum, plus_assoc.
    f_equal; [f_equal|].
    + apply sum_ext. intros s within. rewrite <- through_compose. f_equal.
      rewrite <- suffix_next by lia. f_equal. lia.
    + rewrite <- suffix_own. do 2 f_equal. lia.
Qed.

(* ---------------------------------------------------------------- what a step reads *)

(* `weights`: of the writes of a slice. *)
Definition attention i n t : state C := sum (fun s => if causal s t then x s ◁ segment s t else zero) i n.

Lemma attention_is_earlier i n t :
  i <= t < i + n ->
  attention i n t = sum (fun s => x s ◁ segment s t) i (t - i) ⊕ (if strict o then zero else x t ◁ segment t t).
Proof.
  intros within. unfold attention. destruct (strict o) eqn:rule.
  - rewrite plus_zero, (sum_masked _ (fun s => causal s t) i n t); [reflexivity|lia|..];
      intros r here; unfold causal; rewrite rule.
    + apply Nat.ltb_lt. lia.
    + apply Nat.ltb_ge. lia.
  - rewrite (sum_masked _ (fun s => causal s t) i n (S t)); [|lia|..].
    + replace (S t - i) with (S (t - i)) by lia. rewrite sum_last.
      now replace (i + (t - i)) with t by lia.
    + intros r here. unfold causal. rewrite rule. apply Nat.leb_le. lia.
    + intros r here. unfold causal. rewrite rule. apply Nat.leb_gt. lia.
Qed.

Theorem attention_is_walk S i n t :
  i <= t < i + n -> reads_at S i t = attention i n t ⊕ (S ◁ prefix i t).
Proof.
  intros within. rewrite attention_is_earlier by easy. rewrite own_segment.
  unfold reads_at, seen. rewrite <- carry_is_walk. unfold carry.
  rewrite through_plus, through_sum, <- through_compose.
  replace (product a i (t - i) ⊙ faded o (steps t)) with (prefix i t).
  - rewrite (plus_comm _ (S ◁ prefix i t)), <- !plus_assoc. f_equal; [|apply plus_comm].
    apply sum_ext. intros s here. rewrite <- through_compose, segment_to_here by lia.
    now replace (i + (t - i)) with t by lia.
  - unfold prefix, faded, last_decay. destruct (query_decayed o); [|now rewrite compose_one].
    replace (Datatypes.S t - i) with (Datatypes.S (t - i)) by lia. rewrite product_last.
    now replace (i + (t - i)) with t by lia.
Qed.

(* `attend`, a block of queries at a time, against the keys before its end j. *)
Definition attend_at S i j t : output Q :=
  read (ask (steps t)) (attention i (j - i) t) ⊕ read (ask (steps t)) (S ◁ prefix i t).

Lemma attend_at_is_walk S i j t : i <= t < j -> attend_at S i j t = read (ask (steps t)) (reads_at S i t).
Proof.
  intros within. rewrite (attention_is_walk S i (j - i)) by lia.
  unfold attend_at. now rewrite (of_plus _ (read_additive _ Q _)).
Qed.

Fixpoint attend_rows (fuel : nat) S (rows i n : nat) : list (output Q) :=
  match fuel with
  | 0 => []
  | Datatypes.S fuel =>
      if i <? n
      then map (attend_at S 0 (min (i + rows) n)) (seq i (min (i + rows) n - i))
        ++ attend_rows fuel S rows (i + rows) n
      else []
  end.

Theorem parallel_form S n rows :
  rows > 0 -> (attend_rows n S rows 0 n, carry S 0 n) = walk o S (slice steps 0 n).
Proof.
  intros some. rewrite walk_is, carry_is_walk. f_equal.
  assert (from : forall fuel i, n - i <= fuel ->
    attend_rows fuel S rows i n = map (fun t => read (ask (steps t)) (reads_at S 0 t)) (seq i (n - i))).
  { induction fuel as [|fuel IH]; intros i enough; simpl.
    - now replace (n - i) with 0 by lia.
    - destruct (Nat.ltb_spec i n) as [more|done]; [|now replace (n - i) with 0 by lia].
      set (j := min (i + rows) n). replace (n - i) with ((j - i) + (n - j)) by lia.
      rewrite seq_app, map_app. f_equal.
      + apply map_ext_in. intros t within. apply in_seq in within. apply attend_at_is_walk. lia.
      + rewrite IH by lia. replace (i + (j - i)) with j by lia.
        destruct (le_lt_dec n (i + rows)).
        * replace (n - (i + rows)) with 0 by lia. now replace (n - j) with 0 by lia.
        * now replace j with (i + rows) by lia. }
  rewrite from by lia. now rewrite Nat.sub_0_r.
Qed.

(* ---------------------------------------------------------------- the two reads *)

(* Keys, values and decays one step late, after a step that does nothing. *)
Definition one_step_late t : step Q :=
  match t with
  | 0 => Step one zero (ask (steps 0))
  | Datatypes.S s => Step (a s) (x s) (ask (steps t))
  end.

End Attention.

(* Reading before the write is reading after it, of what is one step late. *)
Theorem read_before_is_late {C : core} {Q : reads C} (steps : nat -> step Q) S n :
  outputs RDA steps S 0 n = outputs DAR (one_step_late steps) S 0 n.
Proof.
  assert (states : forall t, state_after DAR (one_step_late steps) S 0 (t + 1) = state_after RDA steps S 0 t).
  { induction t as [|t IH].
    - cbn. unfold after, kept. cbn. now rewrite through_one, plus_zero.
    - change (Datatypes.S t + 1) with (Datatypes.S (t + 1)). cbn [state_after]. rewrite IH.
      replace (0 + (t + 1)) with (Datatypes.S t) by lia. reflexivity. }
  unfold outputs. apply map_ext_in. intros t _. f_equal; [now destruct t|].
  unfold reads_at. rewrite Nat.sub_0_r.
  transitivity (state_after RDA steps S 0 t).
  - unfold seen, faded, own. cbn -[plus]. now rewrite through_one, plus_zero.
  - rewrite <- states, Nat.add_1_r. cbn [state_after]. now replace (0 + t) with t by lia.
Qed.
