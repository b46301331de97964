(* Finite sums in a commutative monoid: what states, outputs and gradients are added in. *)

Require Import Arith Lia List.

Record sums := Sums {
  carrier :> Type;
  zero : carrier;
  plus : carrier -> carrier -> carrier;
  plus_assoc : forall x y z, plus x (plus y z) = plus (plus x y) z;
  plus_comm : forall x y, plus x y = plus y x;
  zero_plus : forall x, plus zero x = x;
}.
Arguments zero {_}.
Arguments plus {_} _ _.
Notation "x ⊕ y" := (plus x y) (at level 50, left associativity).

Section Sums.
Context {X : sums}.
Implicit Types (x y z : X) (f g : nat -> X).

Lemma plus_zero x : x ⊕ zero = x.
Proof. now rewrite plus_comm, zero_plus. Qed.

Lemma plus_swap x y z : x ⊕ (y ⊕ z) = y ⊕ (x ⊕ z).
Proof. now rewrite !plus_assoc, (plus_comm _ x y). Qed.

Lemma plus_exchange x y z w : (x ⊕ y) ⊕ (z ⊕ w) = (x ⊕ z) ⊕ (y ⊕ w).
Proof. now rewrite <- !plus_assoc, (plus_swap y z w). Qed.

(* f i + f (i+1) + ... : n terms. *)
Fixpoint sum f (i n : nat) : X :=
  match n with
  | 0 => zero
  | S m => f i ⊕ sum f (S i) m
  end.

Lemma sum_ext f g n : forall i,
  (forall r, i <= r < i + n -> f r = g r) -> sum f i n = sum g i n.
Proof.
  induction n as [|n IH]; intros i same; simpl; [reflexivity|].
  rewrite (same i) by lia. f_equal. apply IH. intros r within. apply same. lia.
Qed.

Lemma sum_split f m : forall i n, sum f i (m + n) = sum f i m ⊕ sum f (i + m) n.
Proof.
  induction m as [|m IH]; intros i n; simpl.
  - now rewrite Nat.add_0_r, zero_plus.
  - rewrite IH, plus_assoc. do 2 f_equal. lia.
Qed.

Lemma sum_last f i n : sum f i (S n) = sum f i n ⊕ f (i + n).
Proof. rewrite <- Nat.add_1_r, sum_split. simpl. now rewrite plus_zero. Qed.

Lemma sum_zero f n : forall i, (forall r, i <= r < i + n -> f r = zero) -> sum f i n = zero.
Proof.
  induction n as [|n IH]; intros i none; simpl; [reflexivity|].
  rewrite none, zero_plus by lia. apply IH. intros r within. apply none. lia.
Qed.

Lemma sum_plus f g n : forall i, sum (fun r => f r ⊕ g r) i n = sum f i n ⊕ sum g i n.
Proof.
  induction n as [|n IH]; intros i; simpl; [now rewrite zero_plus|].
  now rewrite IH, plus_exchange.
Qed.

Lemma sum_shift f d n : forall i, sum f (d + i) n = sum (fun r => f (d + r)) i n.
Proof.
  induction n as [|n IH]; intros i; simpl; [reflexivity|].
  now rewrite <- IH, <- plus_n_Sm.
Qed.

Lemma sum_sums (f : nat -> nat -> X) j m n : forall i,
  sum (fun r => sum (f r) j m) i n = sum (fun s => sum (fun r => f r s) i n) j m.
Proof.
  induction n as [|n IH]; intros i; simpl.
  - symmetry. apply sum_zero. reflexivity.
  - now rewrite IH, <- sum_plus.
Qed.

(* Of a mask that admits the terms below `stop` only. *)
Lemma sum_masked f (admits : nat -> bool) i n stop :
  i <= stop <= i + n ->
  (forall r, i <= r < stop -> admits r = true) ->
  (forall r, stop <= r < i + n -> admits r = false) ->
  sum (fun r => if admits r then f r else zero) i n = sum f i (stop - i).
Proof.
  intros range below above. replace n with ((stop - i) + (i + n - stop)) by lia.
  rewrite sum_split, (sum_zero _ (i + n - stop)), plus_zero.
  - apply sum_ext. intros r within. now rewrite below by lia.
  - intros r within. now rewrite above by lia.
Qed.

End Sums.

(* Both sides are sums of the same few terms. *)
Ltac rotate_to a :=
  lazymatch goal with
  | |- _ = a ⊕ _ => idtac
  | |- _ = ?y ⊕ ?r => rewrite (plus_comm _ y r), <- ?plus_assoc
  end.
Ltac same_terms :=
  rewrite <- ?plus_assoc;
  repeat lazymatch goal with
  | |- ?x = ?x => reflexivity
  | |- ?a ⊕ _ = _ => do 8 rotate_to a; apply (f_equal (plus a))
  end.

(* A map that keeps sums. *)
Record additive {X Y : sums} (h : X -> Y) : Prop := Additive {
  of_zero : h zero = zero;
  of_plus : forall x y, h (x ⊕ y) = h x ⊕ h y;
}.

Lemma of_sum {X Y : sums} (h : X -> Y) f n : additive h -> forall i, h (sum f i n) = sum (fun r => h (f r)) i n.
Proof.
  intros keeps. induction n as [|n IH]; intros i; simpl; [apply keeps|].
  now rewrite (of_plus _ keeps), IH.
Qed.
