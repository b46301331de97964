(* What the recurrence needs, and no more: transitions that compose, and act on states that can be added.

   kernels/forms.py: a transition is (log a, log b), composed by adding, which acts by `decay_state`.
   kernels/delta.py: a transition is diag(a) + x y^T, and whatever such matrices compose to.
   Matrices.v and Maps.v show that both are instances. *)

Require Export Arith Lia List.
From Mixerzoo Require Export Sums.
Export ListNotations.

Record core := Core {
  transition : Type;
  one : transition;                                  (* no decay *)
  compose : transition -> transition -> transition;  (* in the order of time: first the left one *)
  state : sums;
  through : state -> transition -> state;            (* what a transition makes of a state *)
  compose_assoc : forall a b c, compose a (compose b c) = compose (compose a b) c;
  one_compose : forall a, compose one a = a;
  compose_one : forall a, compose a one = a;
  through_one : forall x, through x one = x;
  through_compose : forall x a b, through x (compose a b) = through (through x a) b;
  through_additive : forall a, additive (fun x => through x a);
}.
Arguments one {_}.
Arguments compose {_} _ _.
Arguments through {_} _ _.
Notation "a ⊙ b" := (compose a b) (at level 40, left associativity).
Notation "x ◁ a" := (through x a) (at level 40, left associativity).

Section Core.
Context {C : core}.
Implicit Types x y : state C.

Lemma through_zero (a : transition C) : zero ◁ a = zero.
Proof. exact (of_zero _ (through_additive C a)). Qed.

Lemma through_plus x y (a : transition C) : (x ⊕ y) ◁ a = (x ◁ a) ⊕ (y ◁ a).
Proof. exact (of_plus _ (through_additive C a) x y). Qed.

Lemma through_sum f (a : transition C) i n : sum f i n ◁ a = sum (fun r => f r ◁ a) i n.
Proof. exact (of_sum _ f n (through_additive C a) i). Qed.

(* The transitions of n steps from step i on, composed. *)
Fixpoint product (a : nat -> transition C) (i n : nat) : transition C :=
  match n with
  | 0 => one
  | S m => a i ⊙ product a (S i) m
  end.

Lemma product_split a m : forall i n, product a i (m + n) = product a i m ⊙ product a (i + m) n.
Proof.
  induction m as [|m IH]; intros i n; simpl.
  - now rewrite Nat.add_0_r, one_compose.
  - rewrite IH, compose_assoc. do 2 f_equal. lia.
Qed.

Lemma product_last a i n : product a i (S n) = product a i n ⊙ a (i + n).
Proof. rewrite <- Nat.add_1_r, product_split. simpl. now rewrite compose_one. Qed.

Lemma product_ext a b n : forall i,
  (forall r, i <= r < i + n -> a r = b r) -> product a i n = product b i n.
Proof.
  induction n as [|n IH]; intros i same; simpl; [reflexivity|].
  rewrite (same i) by lia. f_equal. apply IH. intros r within. apply same. lia.
Qed.

Lemma product_shift a d n : forall i, product a (d + i) n = product (fun r => a (d + r)) i n.
Proof.
  induction n as [|n IH]; intros i; simpl; [reflexivity|].
  now rewrite <- IH, <- plus_n_Sm.
Qed.

End Core.
