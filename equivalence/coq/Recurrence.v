(* The recurrence is its parallel form, is any chunking of it, is any tree of compositions; for every length.

   Models kernels/forms.py: `walk` (its states), `carry`, kernels/scan.py: `compose`, and kernels/ops.py: `apply_mask`. *)

From Mixerzoo Require Export Core.

Section Recurrence.
Context {C : core}.
Implicit Types (x : state C) (a : transition C).

Definition event := (transition C * state C)%type.  (* a step: decay the state, then add to it *)
Definition advance (S : state C) (e : event) : state C := (S ◁ fst e) ⊕ snd e.

Definition recurrent (S : state C) (l : list event) : state C := fold_left advance l S.

(* All decays of l, and the sum of its writes, each through the decays of the steps after it. *)
Fixpoint total (l : list event) : transition C :=
  match l with
  | [] => one
  | e :: later => fst e ⊙ total later
  end.
Fixpoint parallel (l : list event) : state C :=
  match l with
  | [] => zero
  | e :: later => (snd e ◁ total later) ⊕ parallel later
  end.

Theorem recurrent_is_parallel l : forall S, recurrent S l = (S ◁ total l) ⊕ parallel l.
Proof.
  induction l as [|[a x] l IH]; intros S; simpl.
  - now rewrite through_one, plus_zero.
  - change (recurrent (advance S (a, x)) l = (S ◁ (a ⊙ total l)) ⊕ ((x ◁ total l) ⊕ parallel l)).
    rewrite IH. unfold advance. simpl. now rewrite through_plus, through_compose, plus_assoc.
Qed.

Corollary from_zero l : recurrent zero l = parallel l.
Proof. now rewrite recurrent_is_parallel, through_zero, zero_plus. Qed.

(* The state handed from one piece to the next, wherever the sequence is cut. *)
Theorem split_anywhere S l m : recurrent S (l ++ m) = recurrent (recurrent S l) m.
Proof. apply fold_left_app. Qed.

(* `carry`: the state after a chunk, from the state before it. *)
Definition after_chunk (S : state C) (chunk : list event) : state C := (S ◁ total chunk) ⊕ parallel chunk.

Theorem any_chunking chunks : forall S, recurrent S (concat chunks) = fold_left after_chunk chunks S.
Proof.
  induction chunks as [|c chunks IH]; intros S; simpl; [reflexivity|].
  now rewrite split_anywhere, IH, recurrent_is_parallel.
Qed.

(* ---------------------------------------------------------------- trees of compositions *)

(* `compose`: two stretches of time, one after the other, as one. *)
Definition join (first later : event) : event :=
  (fst first ⊙ fst later, (snd first ◁ fst later) ⊕ snd later).

Theorem join_assoc e f g : join (join e f) g = join e (join f g).
Proof. unfold join. simpl. now rewrite compose_assoc, through_plus, through_compose, plus_assoc. Qed.

Lemma total_app l m : total (l ++ m) = total l ⊙ total m.
Proof.
  induction l as [|e l IH]; simpl; [now rewrite one_compose|].
  now rewrite IH, compose_assoc.
Qed.

Lemma parallel_app l m : parallel (l ++ m) = (parallel l ◁ total m) ⊕ parallel m.
Proof. now rewrite <- from_zero, split_anywhere, (recurrent_is_parallel m), (from_zero l). Qed.

Inductive composition :=
  | Leaf (e : event)
  | Node (earlier later : composition).
Fixpoint leaves (t : composition) : list event :=
  match t with
  | Leaf e => [e]
  | Node earlier later => leaves earlier ++ leaves later
  end.
Fixpoint joined (t : composition) : event :=
  match t with
  | Leaf e => e
  | Node earlier later => join (joined earlier) (joined later)
  end.

Theorem any_tree t : joined t = (total (leaves t), parallel (leaves t)).
Proof.
  induction t as [[a x]|earlier IHe later IHl]; simpl.
  - now rewrite compose_one, through_one, plus_zero.
  - rewrite IHe, IHl. unfold join. simpl. now rewrite total_app, parallel_app.
Qed.

Corollary any_tree_is_recurrent t S : advance S (joined t) = recurrent S (leaves t).
Proof. now rewrite any_tree, recurrent_is_parallel. Qed.

(* ---------------------------------------------------------------- masks *)

(* `apply_mask`: a masked step does not decay, and writes nothing. *)
Definition idle : event := (one, zero).

Lemma step_idle S : advance S idle = S.
Proof. unfold advance, idle. simpl. now rewrite through_one, plus_zero. Qed.

Fixpoint mask (kept : list bool) (l : list event) : list event :=
  match kept, l with
  | b :: kept, e :: l => (if b then e else idle) :: mask kept l
  | _, _ => []
  end.
Fixpoint remaining (kept : list bool) (l : list event) : list event :=
  match kept, l with
  | b :: kept, e :: l => if b then e :: remaining kept l else remaining kept l
  | _, _ => []
  end.

Theorem masked_is_remaining kept : forall l S, recurrent S (mask kept l) = recurrent S (remaining kept l).
Proof.
  induction kept as [|b kept IH]; intros [|e l] S; try reflexivity.
  destruct b; simpl; [apply IH|].
  change (recurrent (advance S idle) (mask kept l) = recurrent S (remaining kept l)).
  now rewrite step_idle, IH.
Qed.

(* ---------------------------------------------------------------- resets *)

(* A transition that forgets: a log-decay of -inf. *)
Definition forgets (a : transition C) := forall x, x ◁ a = zero.

Definition resets (l : list event) :=
  match l with
  | [] => False
  | e :: _ => forgets (fst e)
  end.

Lemma reset_is_from_zero l S : resets l -> recurrent S l = recurrent zero l.
Proof.
  destruct l as [|[a x] l]; simpl; [easy|]. intros forget.
  unfold recurrent. simpl. unfold advance at 2 4. simpl. now rewrite !forget.
Qed.

(* Packed sequences, each of which starts by forgetting: after every one of them the state is its own. *)
Theorem packed_is_apart S before l : resets l -> recurrent S (before ++ l) = recurrent zero l.
Proof. intros forget. rewrite split_anywhere. now apply reset_is_from_zero. Qed.

End Recurrence.
Arguments event : clear implicits.
Arguments composition : clear implicits.
