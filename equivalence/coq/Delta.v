(* The delta rule, and erasure by any x y^T: one unit triangular system gives what every step writes.

   Models kernels/delta.py: `solution`, `solve`, `delta_chunk`, `chunk_form`; kernels/forms.py: `walk`, with beta
   or with x and y. The delta rule and the general form are steps of one sequence here; in the code all steps of
   a sequence are of one kind. For the delta rule the code solves for what is missing, m, and writes it by β k:
   what is written here is β m by k (`missing_is_written`). *)

From Mixerzoo Require Export Forms.

(* Values that can be subtracted, read from states and written to them by keys. *)
Record erasable (C : core) := Erasable {
  values : sums;
  minus : values -> values;
  minus_right : forall v, v ⊕ minus v = zero;
  key : Type;
  look : key -> state C -> values;            (* S^T k *)
  look_additive : forall k, additive (look k);
  outer : key -> values -> state C;           (* k v^T *)
  outer_additive : forall k, additive (outer k);
}.
Arguments values {_} _.
Arguments key {_} _.
Arguments minus {_ _} _.
Arguments look {_ _} _ _.
Arguments outer {_ _} _ _.

Section Solve.
Context {C : core} {V : erasable C}.
Implicit Types (u v w : values V).

Lemma cancel u v w : u ⊕ w = v ⊕ w -> u = v.
Proof.
  intros same. rewrite <- (plus_zero u), <- (plus_zero v), <- (minus_right _ _ w).
  now rewrite !plus_assoc, same.
Qed.

Lemma minus_plus v w : minus (v ⊕ w) = minus v ⊕ minus w.
Proof.
  apply (cancel _ _ (v ⊕ w)). rewrite (plus_comm _ _ (v ⊕ w)), minus_right.
  rewrite plus_exchange, !(plus_comm _ (minus _)), !minus_right. symmetry. apply zero_plus.
Qed.

Lemma minus_zero : minus zero = zero :> values V.
Proof. rewrite <- (zero_plus _ (minus zero)). apply minus_right. Qed.

Lemma minus_sum f n : forall i, minus (sum f i n) = sum (fun r => minus (f r)) i n :> values V.
Proof. apply of_sum. split; [apply minus_zero|apply minus_plus]. Qed.

(* (I + L) x = b for strictly lower triangular L, of steps i .. i+n; an entry of L maps values to values. *)
Variables (L : nat -> nat -> values V -> values V) (b : nat -> values V) (i : nat).
Definition solves (x : nat -> values V) t : Prop := x t ⊕ sum (fun s => L t s (x s)) i (t - i) = b t.

(* `solve`: forward substitution. *)
Fixpoint solve (n : nat) : nat -> values V :=
  match n with
  | 0 => fun _ => zero
  | S n =>
      let x := solve n in
      let next := b (i + n) ⊕ minus (sum (fun s => L (i + n) s (x s)) i n) in
      fun t => if t =? i + n then next else x t
  end.

Theorem solve_solves n t : i <= t < i + n -> solves (solve n) t.
Proof.
  revert t. induction n as [|n IH]; intros t within; [lia|].
  assert (earlier : forall m, m <= n ->
    sum (fun s => L t s (solve (S n) s)) i m = sum (fun s => L t s (solve n s)) i m).
  { intros m few. apply sum_ext. intros s here. cbn [solve]. now destruct (Nat.eqb_spec s (i + n)); [lia|]. }
  unfold solves. rewrite earlier by lia. cbn [solve]. destruct (Nat.eqb_spec t (i + n)) as [->|other].
  - replace (i + n - i) with n by lia.
    rewrite <- plus_assoc, (plus_comm _ (minus _)), minus_right. apply plus_zero.
  - apply IH. lia.
Qed.

Theorem solution_is_unique n x : (forall t, i <= t < i + n -> solves x t) ->
  forall t, i <= t < i + n -> x t = solve n t.
Proof.
  intros right t. induction t as [t before] using (well_founded_induction lt_wf). intros within.
  pose proof (right t within) as one. pose proof (solve_solves n t within) as other.
  unfold solves in *. rewrite <- other in one.
  assert (same : sum (fun s => L t s (x s)) i (t - i) = sum (fun s => L t s (solve n s)) i (t - i)).
  { apply sum_ext. intros s here. rewrite before by lia. reflexivity. }
  rewrite same in one. now apply cancel in one.
Qed.

End Solve.

(* ---------------------------------------------------------------- steps that erase *)

Inductive erasure {C} (V : erasable C) :=
  | Rule (beta : values V -> values V) (linear : additive beta)  (* S + k beta (v - S^T k)^T, after the decay *)
  | General (x y : key V).                                  (* diag(a) S + x (S^T y)^T *)
Arguments Rule {_ _} _ _.
Arguments General {_ _} _ _.

Record erasing {C} (Q : reads C) (V : erasable C) := Erasing {
  fades : transition C;
  at_key : key V;
  value : values V;
  erases : erasure V;
  asks : query Q;
}.
Arguments Erasing {_ _ _} _ _ _ _ _.
Arguments fades {_ _ _} _.
Arguments at_key {_ _ _} _.
Arguments value {_ _ _} _.
Arguments erases {_ _ _} _.
Arguments asks {_ _ _} _.

Section Delta.
Context {C : core} {Q : reads C} {V : erasable C}.
Implicit Types (S : state C) (o : order) (e : erasing Q V).

(* The definition, event by event. *)
Definition delta_happens e (so_far : list (output Q) * state C) (l : letter) : list (output Q) * state C :=
  let (outs, S) := so_far in
  match l, erases e with
  | D, Rule _ _ => (outs, S ◁ fades e)
  | D, General x y => (outs, (S ◁ fades e) ⊕ outer x (look y S))
  | A, Rule beta _ => (outs, S ⊕ outer (at_key e) (beta (value e ⊕ minus (look (at_key e) S))))
  | A, General _ _ => (outs, S ⊕ outer (at_key e) (value e))
  | R, _ => (outs ++ [read (asks e) S], S)
  end.
Definition delta_step o S e : list (output Q) * state C := fold_left (delta_happens e) (events o) ([], S).
Definition delta_walk o := Loop.walk (delta_step o).

(* How the reads that erase see the state: DECAYED for the delta rule, BEFORE for the general form. *)
Definition read_order e : order := match erases e with Rule _ _ => DRA | General _ _ => RDA end.
Definition erase_y e : key V := match erases e with Rule _ _ => at_key e | General _ y => y end.
Definition erase_x e : key V := match erases e with Rule _ _ => at_key e | General x _ => x end.

(* What the erasure writes, of what it reads; what is written anyway; and both, as steps that do not erase. *)
Definition found e (r : values V) : values V :=
  match erases e with Rule beta _ => beta (value e ⊕ minus r) | General _ _ => r end.
Definition known e : state C :=
  match erases e with Rule _ _ => zero | General _ _ => outer (at_key e) (value e) end.
Definition plain e (w : values V) : step Q := Step (fades e) (known e ⊕ outer (erase_x e) w) (asks e).

Definition reads_before e S : values V := look (erase_y e) (S ◁ faded (read_order e) (plain e zero)).

(* The two reads of the public operator, after and before the write: READS of kernels/order.py. *)
Definition one_of_reads o := o = DAR \/ o = RDA.

Lemma delta_step_is_plain o S e :
  one_of_reads o ->
  let w := found e (reads_before e S) in
  delta_step o S e = ([read (asks e) (seen o S (plain e w))], after o S (plain e w)).
Proof.
  intros which w. unfold w, delta_step, reads_before, plain, found, known, erase_y, erase_x, read_order.
  destruct which as [-> | ->]; destruct (erases e) eqn:kind;
    unfold seen, after, faded, own, kept; cbn -[plus look outer]; repeat (rewrite kind; cbn -[plus look outer]);
    rewrite ?through_one, ?plus_zero, ?zero_plus, <- ?plus_assoc;
    rewrite ?(plus_comm _ (outer (at_key e) (value e))); reflexivity.
Qed.

(* ---------------------------------------------------------------- a slice *)

Variables (o : order) (steps : nat -> erasing Q V).
Hypothesis which : one_of_reads o.

Lemma late : key_decayed o = false.
Proof. now destruct which as [-> | ->]. Qed.

Fixpoint delta_state S (i n : nat) : state C :=
  match n with
  | 0 => S
  | Datatypes.S n =>
      let S := delta_state S i n in
      after o S (plain (steps (i + n)) (found (steps (i + n)) (reads_before (steps (i + n)) S)))
  end.
Definition true_write S i t : values V := found (steps t) (reads_before (steps t) (delta_state S i (t - i))).
Definition written_by (w : nat -> values V) t : step Q := plain (steps t) (w t).

Lemma states_of_true_writes S i n w :
  (forall t, i <= t < i + n -> w t = true_write S i t) ->
  state_after o (written_by w) S i n = delta_state S i n.
Proof.
  induction n as [|n IH]; intros right; [reflexivity|]. cbn [state_after delta_state].
  rewrite IH by (intros; apply right; lia). unfold written_by. rewrite right by lia.
  unfold true_write. now replace (i + n - i) with n by lia.
Qed.

Lemma delta_state_next n : forall S i,
  delta_state S i (1 + n) =
  delta_state (after o S (plain (steps i) (found (steps i) (reads_before (steps i) S)))) (1 + i) n.
Proof.
  induction n as [|n IH]; intros S i.
  - cbn. now rewrite Nat.add_0_r.
  - set (next := after o S _).
    change (delta_state S i (1 + Datatypes.S n)) with
      (let S := delta_state S i (1 + n) in
       let e := steps (i + (1 + n)) in after o S (plain e (found e (reads_before e S)))).
    cbv zeta. rewrite IH. fold next. cbn [delta_state].
    now replace (i + (1 + n)) with (1 + i + n) by lia.
Qed.

(* Writes that are the true ones make of the erasing steps plain ones: outputs and states. *)
Theorem erasing_is_plain w n : forall S i,
  (forall t, i <= t < i + n -> w t = true_write S i t) ->
  delta_walk o S (slice steps i n) = walk o S (slice (written_by w) i n).
Proof.
  induction n as [|n IH]; intros S i right; [reflexivity|].
  unfold delta_walk, walk, slice in *. cbn [seq map Loop.walk].
  rewrite delta_step_is_plain, flags_say_all by easy. cbv zeta.
  assert (first : found (steps i) (reads_before (steps i) S) = w i).
  { rewrite right by lia. unfold true_write. now rewrite Nat.sub_diag. }
  rewrite first. unfold written_by at 1. change (ask (plain (steps i) (w i))) with (asks (steps i)).
  rewrite IH; [reflexivity|].
  intros t here. rewrite right by lia. unfold true_write. f_equal. f_equal.
  replace (t - i) with (1 + (t - (1 + i))) by lia. rewrite delta_state_next, first. reflexivity.
Qed.

(* ---------------------------------------------------------------- the system *)

(* What step t reads of a state that was written at s: the scores, strictly lower triangular. *)
Definition score (S : state C) s t : values V :=
  look (erase_y (steps t)) (S ◁ segment (read_order (steps t)) (written_by (fun _ => zero)) s t).

(* The system and the right-hand side in `solution`. *)
Definition system t s (w : values V) : values V :=
  match erases (steps t) with
  | Rule beta _ => beta (score (outer (erase_x (steps s)) w) s t)
  | General _ _ => minus (score (outer (erase_x (steps s)) w) s t)
  end.
Definition entry S i t : values V :=
  look (erase_y (steps t)) (S ◁ prefix (read_order (steps t)) (written_by (fun _ => zero)) i t).
Definition right_hand_side S i t : values V :=
  found (steps t) (entry S i t ⊕ sum (fun s => score (known (steps s)) s t) i (t - i)).

(* Where all steps follow the delta rule it is beta (v - entry). *)
Lemma right_hand_side_of_rule S i t beta linear :
  (forall s, exists beta linear, erases (steps s) = Rule beta linear) -> erases (steps t) = Rule beta linear ->
  right_hand_side S i t = beta (value (steps t) ⊕ minus (entry S i t)).
Proof.
  intros all this. unfold right_hand_side, found. rewrite this, sum_zero, plus_zero; [reflexivity|].
  intros s _. unfold score, known. destruct (all s) as (? & ? & ->).
  rewrite through_zero. apply (of_zero _ (look_additive _ V _)).
Qed.

(* What a step finds, of the state that any writes w leave. *)
Lemma read_is_system S i n w t :
  i <= t < i + n ->
  found (steps t) (reads_before (steps t) (state_after o (written_by w) S i (t - i)))
    ⊕ sum (fun s => system t s (w s)) i (t - i)
  = right_hand_side S i t.
Proof.
  intros within.
  assert (decays : forall v, (fun r => decay (written_by v r)) = (fun r => fades (steps r))) by reflexivity.
  assert (order_kind : key_decayed (read_order (steps t)) = false /\ strict (read_order (steps t)) = true)
    by (unfold read_order; now destruct (erases (steps t))).
  destruct order_kind as [late' strictly].
  (* The state that the orders o and read_order leave is one: neither decays its own write. *)
  assert (one : forall m,
    state_after o (written_by w) S i m = state_after (read_order (steps t)) (written_by w) S i m).
  { induction m as [|m IH]; [reflexivity|]. cbn [state_after]. rewrite IH. unfold after, kept.
    now rewrite late, late'. }
  assert (reads : reads_before (steps t) (state_after o (written_by w) S i (t - i))
    = (entry S i t ⊕ sum (fun s => score (known (steps s)) s t) i (t - i))
      ⊕ sum (fun s => score (outer (erase_x (steps s)) (w s)) s t) i (t - i)).
  { rewrite one. set (ro := read_order (steps t)) in *.
    transitivity (look (erase_y (steps t)) (reads_at ro (written_by w) S i t)).
    - unfold reads_before, reads_at, seen, own. fold ro. rewrite strictly, plus_zero. reflexivity.
    - rewrite (attention_is_walk _ _ _ _ n), attention_is_earlier, strictly, plus_zero by easy.
      rewrite (of_plus _ (look_additive _ V _)), plus_comm, <- plus_assoc. unfold entry. fold ro. f_equal.
      rewrite <- sum_plus, (of_sum _ _ _ (look_additive _ V _)). apply sum_ext. intros s here.
      unfold score. fold ro. rewrite <- (of_plus _ (look_additive _ V _)), <- through_plus. reflexivity. }
  rewrite reads. unfold right_hand_side, found, system. clear reads one.
  set (r := entry S i t ⊕ _). destruct (erases (steps t)) as [beta linear|x y].
  - rewrite <- (of_sum _ _ _ linear), <- (of_plus _ linear). f_equal.
    set (m := sum _ _ _). rewrite minus_plus, <- plus_assoc, <- plus_assoc. f_equal.
    rewrite (plus_comm _ (minus m)), minus_right. apply plus_zero.
  - rewrite <- minus_sum, <- plus_assoc, minus_right. apply plus_zero.
Qed.

(* The true writes are the solution; `solve` finds them. *)
Theorem system_is_right S i n w :
  (forall t, i <= t < i + n -> solves system (right_hand_side S i) i w t)
  <-> (forall t, i <= t < i + n -> w t = true_write S i t).
Proof.
  assert (solved : forall w t, i <= t < i + n ->
    (forall s, i <= s < t -> w s = true_write S i s) ->
    (solves system (right_hand_side S i) i w t <-> w t = true_write S i t)).
  { clear w. intros w t within before. unfold solves. rewrite <- (read_is_system S i n w t) by easy.
    rewrite states_of_true_writes by (intros; apply before; lia). fold (true_write S i t).
    split; [apply cancel|now intros ->]. }
  split; intros right t; [|intros within; apply solved; auto; intros; apply right; lia].
  induction t as [t IH] using (well_founded_induction lt_wf). intros within.
  apply (solved w t within); [|now apply right]. intros s here. apply IH; lia.
Qed.

(* What the code solves for in place of it, where all steps follow the delta rule. *)
Definition share e : values V -> values V :=
  match erases e with Rule beta _ => beta | General _ _ => fun v => v end.

Lemma missing_is_written S i m t beta linear :
  (forall s, exists beta linear, erases (steps s) = Rule beta linear) -> erases (steps t) = Rule beta linear ->
  m t ⊕ sum (fun s => score (outer (erase_x (steps s)) (share (steps s) (m s))) s t) i (t - i)
    = value (steps t) ⊕ minus (entry S i t) ->
  solves system (right_hand_side S i) i (fun s => share (steps s) (m s)) t.
Proof.
  intros all this right. unfold solves.
  rewrite (right_hand_side_of_rule S i t beta linear all this), <- right.
  rewrite (of_plus _ linear), (of_sum _ _ _ linear). f_equal.
  - unfold share. now rewrite this.
  - apply sum_ext. intros s _. unfold system. now rewrite this.
Qed.

Definition solution S i n := solve system (right_hand_side S i) i n.

Theorem solution_is_writes S i n t : i <= t < i + n -> solution S i n t = true_write S i t.
Proof. revert t. apply system_is_right. intros t. apply solve_solves. Qed.

(* ---------------------------------------------------------------- the chunk form *)

Lemma superposition (first second both : nat -> step Q) S S' i n :
  (forall t, decay (both t) = decay (first t) /\ decay (both t) = decay (second t)) ->
  (forall t, write (both t) = write (first t) ⊕ write (second t)) ->
  state_after o both (S ⊕ S') i n = state_after o first S i n ⊕ state_after o second S' i n.
Proof.
  intros decays writes. induction n as [|n IH]; [reflexivity|].
  cbn [state_after]. rewrite IH. unfold after, kept. rewrite late.
  destruct (decays (i + n)) as [<- <-]. rewrite writes, through_plus. apply plus_exchange.
Qed.

(* `solution`: the slices that do not erase, whose outputs and states add up. *)
Definition first_slice w t : step Q :=
  Step (fades (steps t))
    (match erases (steps t) with Rule _ _ => outer (at_key (steps t)) (w t) | General _ _ => known (steps t) end)
    (asks (steps t)).
Definition second_slice w t : step Q :=
  Step (fades (steps t))
    (match erases (steps t) with Rule _ _ => zero | General x _ => outer x (w t) end)
    (asks (steps t)).

Lemma slices_add w t : write (written_by w t) = write (first_slice w t) ⊕ write (second_slice w t).
Proof.
  unfold written_by, plain, first_slice, second_slice, known, erase_x. cbn -[plus].
  destruct (erases (steps t)); [now rewrite zero_plus, plus_zero|reflexivity].
Qed.

Definition delta_chunk (how : inside) S i j : list (output Q) * state C :=
  let w := solution S i (j - i) in
  (map (fun t => chunk_output o (first_slice w) how S i (j - i) t
                 ⊕ chunk_output o (second_slice w) how zero i (j - i) t) (seq i (j - i)),
   carry o (first_slice w) S i (j - i) ⊕ carry o (second_slice w) zero i (j - i)).

Theorem delta_chunk_is_walk how S i j :
  i <= j -> delta_chunk how S i j = delta_walk o S (slice steps i (j - i)).
Proof.
  intros forward. unfold delta_chunk. cbv zeta. set (w := solution S i (j - i)).
  rewrite (erasing_is_plain w) by (intros; now apply solution_is_writes).
  rewrite walk_is. rewrite !carry_is_walk.
  assert (states : forall m, state_after o (written_by w) S i m
    = state_after o (first_slice w) S i m ⊕ state_after o (second_slice w) zero i m).
  { intros m. rewrite <- (plus_zero S) at 1. apply superposition; [easy|]. apply slices_add. }
  rewrite <- states. f_equal. unfold outputs. apply map_ext_in. intros t within. apply in_seq in within.
  unfold chunk_output.
  assert (each : forall s (Z : state C),
    read (ask (s t))
      (match how with ByWeights => attention o s i (j - i) t | ByTree idle => tree o s i (j - i) idle t end)
      ⊕ read (ask (s t)) (Z ◁ prefix o s i t)
    = read (ask (s t)) (reads_at o s Z i t)).
  { intros s Z. rewrite (attention_is_walk _ _ _ _ (j - i)), (of_plus _ (read_additive _ Q _)) by lia.
    destruct how; [reflexivity|]. now rewrite tree_is_attention by lia. }
  rewrite !each. change (ask (second_slice w t)) with (ask (written_by w t)).
  change (ask (first_slice w t)) with (ask (written_by w t)).
  rewrite <- (of_plus _ (read_additive _ Q _)). f_equal.
  unfold reads_at. rewrite states. unfold seen, own. rewrite late, slices_add.
  change (faded o (written_by w t)) with (faded o (first_slice w t)).
  change (faded o (second_slice w t)) with (faded o (first_slice w t)).
  rewrite through_plus. destruct (strict o); [now rewrite !plus_zero|].
  rewrite Bool.andb_false_r. apply plus_exchange.
Qed.

Theorem delta_chunk_form how S T size :
  size > 0 -> in_blocks (delta_chunk how) S T size = delta_walk o S (slice steps 0 T).
Proof.
  intros some. apply loop_is_walk; [easy|]. intros. apply delta_chunk_is_walk. lia.
Qed.

(* ---------------------------------------------------------------- the parallel form *)

(* One system for all steps; then attention, `rows` queries at a time, to each of the two slices. *)
Definition delta_parallel S T rows : list (output Q) * state C :=
  let w := solution S 0 T in
  (map (fun outs => fst outs ⊕ snd outs)
     (combine (attend_rows o (first_slice w) T S rows 0 T) (attend_rows o (second_slice w) T zero rows 0 T)),
   carry o (first_slice w) S 0 T ⊕ carry o (second_slice w) zero 0 T).

Theorem delta_parallel_form S T rows :
  rows > 0 -> delta_parallel S T rows = delta_walk o S (slice steps 0 T).
Proof.
  intros some. pose proof (delta_chunk_is_walk ByWeights S 0 T (Nat.le_0_l T)) as same.
  rewrite Nat.sub_0_r in same. rewrite <- same. clear same.
  unfold delta_parallel, delta_chunk. cbv zeta. rewrite Nat.sub_0_r. set (w := solution S 0 T). f_equal.
  assert (rows_of : forall (s : nat -> step Q) (Z : state C),
    attend_rows o s T Z rows 0 T = map (chunk_output o s ByWeights Z 0 T) (seq 0 T)).
  { intros s Z. pose proof (parallel_form o s Z T rows some) as walked.
    pose proof (chunk_is_walk o s ByWeights Z 0 T (Nat.le_0_l T)) as chunked.
    rewrite Nat.sub_0_r in chunked. rewrite <- chunked in walked. unfold chunk in walked.
    rewrite Nat.sub_0_r in walked. congruence. }
  rewrite !rows_of. generalize (seq 0 T). induction l as [|t l IH]; simpl; [reflexivity|]. now rewrite IH.
Qed.

End Delta.
