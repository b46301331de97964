(* The delta rule's gradient in chunks: a change of what is written goes back through the transposed system.

   Models kernels/delta.py: `solve` with transposed=True, and of `delta_gradient` the gradient of v, with beta (the
   system there is that of what is missing, see Delta.v: what solves its transpose is β times what does here). *)

From Mixerzoo Require Export Gradients Delta.

Section DeltaGradient.
Context {C : core} {V : erasable C} {K : dual C}.
Notation Q := (cotangents K).

(* Gradients of values. *)
Variables (covalues : sums) (inner : values V -> covalues -> numbers K).
Hypothesis inner_left : forall y, additive (fun x => inner x y).
Hypothesis inner_right : forall x, additive (inner x).

(* ---------------------------------------------------------------- the transposed system *)

Section Transposed.
Variables (L : nat -> nat -> values V -> values V) (Lt : nat -> nat -> covalues -> covalues) (i n : nat).
Hypothesis transposes : forall t s x y, inner (L t s x) y = inner x (Lt t s y).

(* (I + L)^T y = c. *)
Definition solves_transposed (c y : nat -> covalues) t : Prop :=
  y t ⊕ sum (fun s => Lt s t (y s)) (t + 1) (i + n - (t + 1)) = c t.

(* Sums over the pairs s < t of a slice, by rows and by columns. *)
Lemma triangle (f : nat -> nat -> numbers K) m : forall j,
  sum (fun t => sum (fun s => f t s) j (t - j)) j m
  = sum (fun s => sum (fun t => f t s) (s + 1) (j + m - (s + 1))) j m.
Proof.
  induction m as [|m IH]; intros j; [reflexivity|].
  rewrite !sum_last, IH. replace (j + m - j) with m by lia.
  replace (j + S m - (j + m + 1)) with 0 by lia. cbn [sum]. rewrite plus_zero, <- sum_plus.
  apply sum_ext. intros s here. replace (j + S m - (s + 1)) with (S (j + m - (s + 1))) by lia.
  rewrite sum_last. now replace (s + 1 + (j + m - (s + 1))) with (j + m) by lia.
Qed.

(* What the solution gives to any gradient, the right-hand side gives to the solution of the transposed system. *)
Theorem transposed_system (x b : nat -> values V) (y c : nat -> covalues) :
  (forall t, i <= t < i + n -> solves L b i x t) ->
  (forall t, i <= t < i + n -> solves_transposed c y t) ->
  sum (fun t => inner (x t) (c t)) i n = sum (fun t => inner (b t) (y t)) i n.
Proof.
  intros forward backward.
  transitivity (sum (fun t => inner (x t) (y t)) i n
    ⊕ sum (fun s => sum (fun t => inner (L t s (x s)) (y t)) (s + 1) (i + n - (s + 1))) i n).
  - rewrite <- sum_plus. apply sum_ext. intros t within. rewrite <- backward by easy.
    rewrite (of_plus _ (inner_right _)), (of_sum _ _ _ (inner_right _)). f_equal.
    apply sum_ext. intros s later. symmetry. apply transposes.
  - rewrite <- triangle, <- sum_plus. apply sum_ext. intros t within. rewrite <- forward by easy.
    rewrite (of_plus _ (inner_left _)). f_equal. symmetry. apply (of_sum _ _ _ (inner_left (y t))).
Qed.

End Transposed.

(* ---------------------------------------------------------------- what a change of the writes does to the loss *)

Variables (o : order) (steps : nat -> erasing Q V) (G : state (costates K)).

(* The gradient of what step t writes, of a slice that ends before `stop`: it does not depend on any write. *)
Definition path stop t : state (costates K) :=
  write_gradient o (gradient_before o (slice (written_by steps (fun _ => zero)) (t + 1) (stop - (t + 1))) G)
    (written_by steps (fun _ => zero) t).

Lemma gradient_ignores_writes w n : forall i,
  gradient_before o (slice (written_by steps w) i n) G
  = gradient_before o (slice (written_by steps (fun _ => zero)) i n) G.
Proof.
  induction n as [|n IH]; intros i; [reflexivity|].
  unfold slice in *. cbn [seq map]. now rewrite !gradient_before_next, IH.
Qed.

Lemma loss_of_changed_writes S w d n : forall i,
  loss o S (slice (written_by steps (fun t => w t ⊕ d t)) i n) G
  = loss o S (slice (written_by steps w) i n) G
    ⊕ sum (fun t => pair (outer (erase_x (steps t)) (d t)) (path (i + n) t)) i n.
Proof.
  intros i. rewrite !adjoint_identity, <- plus_assoc.
  rewrite (gradient_ignores_writes (fun t => w t ⊕ d t)), (gradient_ignores_writes w). f_equal.
  revert i. induction n as [|n IH]; intros i.
  - symmetry. apply zero_plus.
  - unfold slice in *. cbn [seq map written sum]. rewrite IH. clear IH.
    pose proof (gradient_ignores_writes (fun t => w t ⊕ d t) n (Datatypes.S i)) as changed.
    pose proof (gradient_ignores_writes w n (Datatypes.S i)) as unchanged.
    unfold slice in changed, unchanged. rewrite changed, unchanged. clear changed unchanged.
    assert (here : path (i + Datatypes.S n) i = write_gradient o
      (gradient_before o (map (written_by steps (fun _ => zero)) (seq (Datatypes.S i) n)) G)
      (written_by steps (fun _ => zero) i)).
    { unfold path, slice. replace (i + Datatypes.S n - (i + 1)) with n by lia. now rewrite Nat.add_1_r. }
    rewrite here. set (G' := gradient_before o _ G).
    change (write_gradient o G' (written_by steps (fun t => w t ⊕ d t) i))
      with (write_gradient o G' (written_by steps (fun _ => zero) i)).
    change (write_gradient o G' (written_by steps w i))
      with (write_gradient o G' (written_by steps (fun _ => zero) i)).
    change (write (written_by steps (fun t => w t ⊕ d t) i))
      with (known (steps i) ⊕ outer (erase_x (steps i)) (w i ⊕ d i)).
    change (write (written_by steps w i)) with (known (steps i) ⊕ outer (erase_x (steps i)) (w i)).
    rewrite (of_plus _ (outer_additive _ V _)), !plus_pair.
    replace (Datatypes.S i + n) with (i + Datatypes.S n) by lia. same_terms.
Qed.

(* ---------------------------------------------------------------- the gradient of the values *)

Hypothesis which : one_of_reads o.
Variables (S : state C) (i n : nat) (Lt : nat -> nat -> covalues -> covalues) (c y : nat -> covalues).
Hypothesis transposes : forall t s x z, inner (system steps t s x) z = inner x (Lt t s z).
(* The canonical gradient of what is written, and the solution of the transposed system. *)
Hypothesis canonical : forall t u, i <= t < i + n ->
  pair (outer (erase_x (steps t)) u) (path (i + n) t) = inner u (c t).
Hypothesis solved : forall t, i <= t < i + n -> solves_transposed Lt i n c y t.

(* A right-hand side that changes by d changes the loss by <d, y>. *)
Theorem gradient_of_right_hand_side (w dw d : nat -> values V) :
  (forall t, i <= t < i + n -> solves (system steps) d i dw t) ->
  loss o S (slice (written_by steps (fun t => w t ⊕ dw t)) i n) G
  = loss o S (slice (written_by steps w) i n) G ⊕ sum (fun t => inner (d t) (y t)) i n.
Proof.
  intros change. rewrite loss_of_changed_writes. f_equal.
  rewrite <- (transposed_system (system steps) Lt i n transposes dw d y c change solved).
  apply sum_ext. intros t within. now apply canonical.
Qed.


(* The delta rule, with other values. *)
Definition scale_of (e : erasing Q V) : values V -> values V :=
  match erases e with Rule beta _ => beta | General _ _ => fun v => v end.
Hypothesis all_rule : forall t, exists beta linear, erases (steps t) = Rule beta linear.
Variable d : nat -> values V.
Definition moved t : erasing Q V :=
  Erasing (fades (steps t)) (at_key (steps t)) (value (steps t) ⊕ d t) (erases (steps t)) (asks (steps t)).

Definition delta_loss (l : list (erasing Q V)) : numbers K :=
  let (outs, end_) := delta_walk o S l in total_of outs ⊕ pair end_ G.

Lemma system_additive t s : additive (system steps t s).
Proof.
  unfold system, score. destruct (all_rule t) as (beta & linear & ->). split; intros.
  - rewrite (of_zero _ (outer_additive _ V _)), through_zero, (of_zero _ (look_additive _ V _)). apply linear.
  - rewrite (of_plus _ (outer_additive _ V _)), through_plus, (of_plus _ (look_additive _ V _)). apply linear.
Qed.

(* Of (I + L)^T y = c with the canonical gradients c of what is written: dv = beta y. *)
Theorem gradient_of_values :
  delta_loss (slice moved i n)
  = delta_loss (slice steps i n) ⊕ sum (fun t => inner (scale_of (steps t) (d t)) (y t)) i n.
Proof.
  set (w := solution steps S i n). set (b := fun t => scale_of (steps t) (d t)).
  set (dw := solve (system steps) b i n).
  assert (change : forall t, i <= t < i + n -> solves (system steps) b i dw t) by (intros; now apply solve_solves).
  transitivity (loss o S (slice (written_by steps (fun t => w t ⊕ dw t)) i n) G).
  2: { rewrite (gradient_of_right_hand_side w dw b change). f_equal. unfold delta_loss.
       now rewrite (erasing_is_plain o steps which w n S i) by (intros; now apply solution_is_writes). }
  unfold delta_loss.
  rewrite (erasing_is_plain o moved which (fun t => w t ⊕ dw t) n S i).
  - replace (slice (written_by moved (fun t => w t ⊕ dw t)) i n)
      with (slice (written_by steps (fun t => w t ⊕ dw t)) i n); [reflexivity|].
    apply map_ext. intros t. unfold written_by, plain, known, erase_x, moved. cbn [erases fades at_key asks].
    now destruct (all_rule t) as (beta & linear & ->).
  - apply (system_is_right o moved which S i n). intros t within.
    pose proof (change t within) as second.
    pose proof (solve_solves (system steps) (right_hand_side steps S i) i n t within) as first.
    change (solve (system steps) (right_hand_side steps S i) i n) with w in first. unfold solves in *.
    assert (same : sum (fun s => system moved t s (w s ⊕ dw s)) i (t - i)
      = sum (fun s => system steps t s (w s)) i (t - i) ⊕ sum (fun s => system steps t s (dw s)) i (t - i)).
    { rewrite <- sum_plus. apply sum_ext. intros s here. rewrite <- (of_plus _ (system_additive t s)).
      unfold system, score, erase_x, erase_y, read_order, moved. cbn [erases at_key].
      destruct (all_rule t) as (beta & linear & ->). now destruct (all_rule s) as (? & ? & ->). }
    rewrite same, plus_exchange, first, second. unfold b, right_hand_side, scale_of, found.
    cbn [moved erases value].
    assert (reads : entry moved S i t ⊕ sum (fun s => score moved (known (moved s)) s t) i (t - i)
      = entry steps S i t ⊕ sum (fun s => score steps (known (steps s)) s t) i (t - i)).
    { unfold entry, score, known, erase_y, read_order, moved. cbn [erases at_key value].
      destruct (all_rule t) as (? & ? & ->). f_equal. apply sum_ext. intros s here.
      now destruct (all_rule s) as (? & ? & ->). }
    rewrite reads. destruct (all_rule t) as (beta & linear & rule). rewrite rule, <- (of_plus _ linear). f_equal.
    rewrite <- !plus_assoc. f_equal. apply plus_comm.
Qed.

End DeltaGradient.
