(* The six orders of decay, write and read within a step, and what each reads.

   Models kernels/order.py: `Order` and its flags; kernels/forms.py: `walk`; kernels/scan.py: the read of `scan`. *)

From Mixerzoo Require Export Recurrence Loop.

Inductive letter := D | A | R.  (* decay, add, read *)
Inductive order := DAR | ARD | RDA | DRA | RAD | ADR.

Definition events (o : order) : list letter :=
  match o with
  | DAR => [D; A; R]
  | ARD => [A; R; D]
  | RDA => [R; D; A]
  | DRA => [D; R; A]
  | RAD => [R; A; D]
  | ADR => [A; D; R]
  end.

Definition same (l m : letter) : bool :=
  match l, m with
  | D, D | A, A | R, R => true
  | _, _ => false
  end.
Fixpoint index (l : letter) (events : list letter) : nat :=
  match events with
  | [] => 0
  | e :: later => if same l e then 0 else 1 + index l later
  end.
Definition precedes (o : order) (l m : letter) : bool := index l (events o) <? index m (events o).
Definition query_decayed (o : order) : bool := precedes o D R.
Definition key_decayed (o : order) : bool := precedes o A D.
Definition strict (o : order) : bool := precedes o R A.

(* How states are read: outputs are additive in the state. kernels/forms.py: `read_state`. *)
Record reads (C : core) := Reads {
  query : Type;
  output : sums;
  read : query -> state C -> output;
  read_additive : forall q, additive (read q);
}.
Arguments query {_} _.
Arguments output {_} _.
Arguments read {_ _} _ _.

Record step {C : core} (Q : reads C) := Step {
  decay : transition C;
  write : state C;
  ask : query Q;
}.
Arguments Step {_ _} _ _ _.
Arguments decay {_ _} _.
Arguments write {_ _} _.
Arguments ask {_ _} _.

Section Orders.
Context {C : core} {Q : reads C}.
Implicit Types (S x : state C) (o : order) (e : step Q).

(* The definition: the events of a step one after the other. *)
Definition happens e (so_far : list (output Q) * state C) (l : letter) : list (output Q) * state C :=
  let (outs, S) := so_far in
  match l with
  | D => (outs, S ◁ decay e)
  | A => (outs, S ⊕ write e)
  | R => (outs ++ [read (ask e) S], S)
  end.
Definition walk_step o S e : list (output Q) * state C := fold_left (happens e) (events o) ([], S).

(* What a step leaves of its own write, what it reads of it, and through what it reads the state before it. *)
Definition kept o e : state C := if key_decayed o then write e ◁ decay e else write e.
Definition own o e : state C :=
  if strict o then zero else if andb (query_decayed o) (key_decayed o) then write e ◁ decay e else write e.
Definition faded o e : transition C := if query_decayed o then decay e else one.

Definition after o S e : state C := (S ◁ decay e) ⊕ kept o e.
Definition seen o S e : state C := (S ◁ faded o e) ⊕ own o e.

Theorem flags_say_all o S e : walk_step o S e = ([read (ask e) (seen o S e)], after o S e).
Proof.
  destruct o; unfold walk_step, after, seen, faded, own, kept; simpl;
    now rewrite ?through_one, ?through_plus, ?plus_zero.
Qed.

(* So in every order the states are those of one recurrence, of which a write may be the decayed one. *)
Definition canonical o e : event C := (decay e, kept o e).

Lemma after_is_advance o S e : after o S e = advance S (canonical o e).
Proof. reflexivity. Qed.

(* How `scan` reads a step, of the states before and after it: the latter in orders that end in R. *)
Definition until_read o : list letter := firstn (index R (events o)) (events o).
Definition scan_read o S (later : state C) e : state C :=
  if index R (events o) =? 2 then later
  else fold_left
    (fun S l => match l with D => S ◁ decay e | A => S ⊕ write e | R => S end) (until_read o) S.

Theorem scan_reads_right o S e : scan_read o S (after o S e) e = seen o S e.
Proof.
  destruct o; unfold scan_read, after, seen, faded, own, kept; simpl;
    now rewrite ?through_one, ?through_plus, ?plus_zero.
Qed.

(* ---------------------------------------------------------------- every order from one *)

(* Each order reads what RDA reads, of the same states in the two orders that keep a write as it is, and of the
   states with decayed writes in the two others, with the step's own decay and its own write added locally. *)
Theorem orders_from_one S e :
  seen DRA S e = seen RDA S e ◁ decay e
  /\ seen DAR S e = (seen RDA S e ◁ decay e) ⊕ write e
  /\ seen RAD S e = seen RDA S e
  /\ seen ARD S e = seen RDA S e ⊕ write e
  /\ seen ADR S e = (seen RDA S e ◁ decay e) ⊕ (write e ◁ decay e).
Proof.
  unfold seen, faded, own. simpl. now rewrite !through_one, !plus_zero.
Qed.

Definition with_kept_write o e : step Q := Step (decay e) (kept o e) (ask e).

Theorem states_from_one o S e : after o S e = after RDA S (with_kept_write o e).
Proof. reflexivity. Qed.

(* ---------------------------------------------------------------- masks and resets, outputs included *)

Definition walk o := Loop.walk (walk_step o).

Lemma walk_end o l : forall S, snd (walk o S l) = fold_left (after o) l S.
Proof.
  induction l as [|e l IH]; intros S; [reflexivity|].
  unfold walk in *. cbn [Loop.walk fold_left]. rewrite flags_say_all, <- IH.
  now destruct (Loop.walk (walk_step o) (after o S e) l).
Qed.

(* kernels/ops.py, `apply_mask`: a masked step neither decays nor writes. What it reads counts for nothing. *)
Definition masked (keep : bool) e : step Q := if keep then e else Step one zero (ask e).
Fixpoint mask_steps (keeps : list bool) (l : list (step Q)) : list (step Q) :=
  match keeps, l with
  | keep :: keeps, e :: l => masked keep e :: mask_steps keeps l
  | _, _ => []
  end.
Fixpoint those_kept {E} (keeps : list bool) (l : list E) : list E :=
  match keeps, l with
  | keep :: keeps, e :: l => if keep then e :: those_kept keeps l else those_kept keeps l
  | _, _ => []
  end.

Theorem mask_outputs o keeps : forall l S,
  let (outs, end_) := walk o S (mask_steps keeps l) in
  (those_kept keeps outs, end_) = walk o S (those_kept keeps l).
Proof.
  induction keeps as [|keep keeps IH]; intros [|e l] S; try reflexivity.
  unfold walk in *. cbn [mask_steps those_kept Loop.walk]. rewrite flags_say_all.
  destruct keep; cbn [masked those_kept Loop.walk].
  - rewrite flags_say_all. specialize (IH l (after o S e)).
    destruct (Loop.walk _ _ (mask_steps keeps l)) as [outs end_].
    destruct (Loop.walk _ _ (those_kept keeps l)). simpl. congruence.
  - assert (still : after o S (Step one zero (ask e)) = S).
    { unfold after, kept. simpl. destruct (key_decayed o); now rewrite ?through_one, plus_zero. }
    rewrite still. specialize (IH l S). destruct (Loop.walk _ _ (mask_steps keeps l)). exact IH.
Qed.

(* A decay of 0 on the first step of a sequence packed after others, in the orders whose reads are decayed. *)
Theorem reset_outputs o S S' e l :
  query_decayed o = true -> forgets (decay e) -> walk o S (e :: l) = walk o S' (e :: l).
Proof.
  intros decayed forget. unfold walk. cbn [Loop.walk]. rewrite !flags_say_all.
  assert (states : after o S e = after o S' e) by (unfold after; now rewrite !forget).
  assert (reads : seen o S e = seen o S' e) by (unfold seen, faded; rewrite decayed; now rewrite !forget).
  now rewrite states, reads.
Qed.

End Orders.
