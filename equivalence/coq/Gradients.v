(* The gradient of the recurrence: of what is written, read and decayed, and of the initial state.

   Models kernels/gradients.py: `walk_gradient`, and kernels/order.py: `Order.adjoint`. The loss is
   sum_t <o_t, do_t> + <S_T, G_T>, and a gradient is what it changes by: exactly, since it is affine in each. *)

From Mixerzoo Require Export Forms.

(* Gradients of states, and the decays as they act on these, in reversed time: itself for diag(a), the transposed
   for a matrix. `pair` may be the sum over all entries of S ∘ G, or over those of one key, or of one value. *)
Record dual (C : core) := Dual {
  costates : core;
  numbers : sums;
  turn : transition C -> transition costates;
  pair : state C -> state costates -> numbers;
  pair_left : forall G, additive (fun S => pair S G);
  pair_right : forall S, additive (fun G => pair S G);
  pair_turn : forall S a G, pair (S ◁ a) G = pair S (G ◁ turn a);
}.
Arguments costates {_} _.
Arguments numbers {_} _.
Arguments turn {_ _} _.
Arguments pair {_ _} _ _.

(* Reading for the loss: <q^T S, do> = <S, q do^T>; and states as what is read of their gradients. *)
Definition cotangents {C} (K : dual C) : reads C :=
  Reads C (state (costates K)) (numbers K) (fun g S => pair S g) (pair_left C K).
Definition tangents {C} (K : dual C) : reads (costates K) :=
  Reads (costates K) (state C) (numbers K) (fun x G => pair x G) (pair_right C K).

(* The adjoint of an order: its events backwards, reads and writes swapped. *)
Definition swap (l : letter) : letter := match l with D => D | A => R | R => A end.
Definition adjoint (o : order) : order :=
  match o with
  | DAR => ARD
  | ARD => DAR
  | RDA => RDA
  | DRA => RAD
  | RAD => DRA
  | ADR => ADR
  end.

Theorem adjoint_is_reversed o : events (adjoint o) = map swap (rev (events o)).
Proof. now destruct o. Qed.

Theorem adjoint_flags o :
  query_decayed (adjoint o) = key_decayed o /\ key_decayed (adjoint o) = query_decayed o
  /\ strict (adjoint o) = strict o.
Proof. now destruct o. Qed.

Section Gradients.
Context {C : core} {K : dual C}.
Notation Q := (cotangents K).
Implicit Types (S x : state C) (G g : state (costates K)) (o : order) (e : step Q) (l : list (step Q)).

Lemma pair_zero S : pair S (zero : state (costates K)) = zero.
Proof. exact (of_zero _ (pair_right C K S)). Qed.
Lemma zero_pair G : pair (zero : state C) G = zero.
Proof. exact (of_zero _ (pair_left C K G)). Qed.
Lemma pair_plus S G g : pair S (G ⊕ g) = pair S G ⊕ pair S g.
Proof. exact (of_plus _ (pair_right C K S) G g). Qed.
Lemma plus_pair S x G : pair (S ⊕ x) G = pair S G ⊕ pair x G.
Proof. exact (of_plus _ (pair_left C K G) S x). Qed.

(* A step of the gradient's recurrence: it writes what was read, and reads what was written. *)
Definition turned e : step (tangents K) := @Step _ (tangents K) (turn (decay e)) (ask e) (write e).

Definition back o (G : state (costates K)) e : state (costates K) := after (adjoint o) G (turned e).
Definition write_gradient o (G : state (costates K)) e : state (costates K) := seen (adjoint o) G (turned e).

Fixpoint total_of (outs : list (numbers K)) : numbers K :=
  match outs with
  | [] => zero
  | n :: outs => n ⊕ total_of outs
  end.
Definition loss o S l G : numbers K := let (outs, end_) := walk o S l in total_of outs ⊕ pair end_ G.

(* The gradient of the state before l: the recurrence again, in the adjoint order and reversed time. *)
Definition gradient_before o l G : state (costates K) := snd (walk (adjoint o) G (rev (map turned l))).

Lemma gradient_before_next o e l G : gradient_before o (e :: l) G = back o (gradient_before o l G) e.
Proof.
  unfold gradient_before. rewrite !walk_end. simpl map. simpl rev. now rewrite fold_left_app.
Qed.

(* What all writes contribute. *)
Fixpoint written o l G : numbers K :=
  match l with
  | [] => zero
  | e :: l => pair (write e) (write_gradient o (gradient_before o l G) e) ⊕ written o l G
  end.

(* One step: what goes in, its state and its write, and what comes out, weighed by their gradients, are one. *)
Lemma adjoint_step o S e G :
  pair S (back o G e) ⊕ pair (write e) (write_gradient o G e)
  = pair (seen o S e) (ask e) ⊕ pair (after o S e) G.
Proof.
  destruct o; unfold back, write_gradient, seen, after, faded, own, kept; cbn -[plus pair];
    rewrite ?through_one, ?plus_zero, ?through_plus, ?plus_pair, ?pair_plus, ?zero_pair, ?pair_zero,
      <- ?pair_turn, ?plus_zero.
  all: same_terms.
Qed.

Lemma loss_next o S e l G : loss o S (e :: l) G = pair (seen o S e) (ask e) ⊕ loss o (after o S e) l G.
Proof.
  unfold loss, walk. cbn [Loop.walk]. rewrite flags_say_all.
  destruct (Loop.walk (walk_step o) (after o S e) l). cbn -[plus]. now rewrite plus_assoc.
Qed.

Lemma loss_split o S early l G :
  loss o S (early ++ l) G = total_of (fst (walk o S early)) ⊕ loss o (snd (walk o S early)) l G.
Proof.
  revert S. induction early as [|e early IH]; intros S; simpl app.
  - symmetry. apply zero_plus.
  - rewrite loss_next, IH. unfold walk. cbn [Loop.walk]. rewrite flags_say_all.
    destruct (Loop.walk (walk_step o) (after o S e) early). cbn -[plus]. now rewrite plus_assoc.
Qed.

(* The identity behind all gradients: sum_t <o_t, do_t> + <S_T, G_T> = <S_0, G_0> + sum_s <x_s, G_s>. *)
Theorem adjoint_identity o l G : forall S,
  loss o S l G = pair S (gradient_before o l G) ⊕ written o l G.
Proof.
  induction l as [|e l IH]; intros S.
  - unfold loss, gradient_before. cbn -[plus]. now rewrite zero_plus, plus_zero.
  - rewrite loss_next, IH, gradient_before_next. cbn [written].
    rewrite plus_assoc, <- adjoint_step. now rewrite <- plus_assoc.
Qed.

(* ---------------------------------------------------------------- the loss changes by <change, gradient> *)

Theorem gradient_of_state o S l G d :
  loss o (S ⊕ d) l G = loss o S l G ⊕ pair d (gradient_before o l G).
Proof. rewrite !adjoint_identity, plus_pair. same_terms. Qed.

Theorem gradient_of_end o S l G d : loss o S l (G ⊕ d) = loss o S l G ⊕ pair (snd (walk o S l)) d.
Proof. unfold loss. destruct (walk o S l). simpl. now rewrite pair_plus, plus_assoc. Qed.

Definition with_write e x : step Q := Step (decay e) x (ask e).
Definition with_read e g : step Q := @Step _ Q (decay e) (write e) g.
Definition with_decay e a : step Q := Step a (write e) (ask e).

Theorem gradient_of_write o S early e later G d :
  loss o S (early ++ with_write e (write e ⊕ d) :: later) G
  = loss o S (early ++ e :: later) G ⊕ pair d (write_gradient o (gradient_before o later G) e).
Proof.
  rewrite !loss_split, !adjoint_identity, !gradient_before_next. cbn [written].
  change (write_gradient o (gradient_before o later G) (with_write e (write e ⊕ d)))
    with (write_gradient o (gradient_before o later G) e).
  change (back o (gradient_before o later G) (with_write e (write e ⊕ d)))
    with (back o (gradient_before o later G) e).
  cbn [write with_write]. rewrite plus_pair. same_terms.
Qed.

Theorem gradient_of_read o S early e later G d :
  loss o S (early ++ with_read e (ask e ⊕ d) :: later) G
  = loss o S (early ++ e :: later) G ⊕ pair (seen o (snd (walk o S early)) e) d.
Proof.
  rewrite !loss_split, !loss_next.
  change (seen o (snd (walk o S early)) (with_read e (ask e ⊕ d))) with (seen o (snd (walk o S early)) e).
  change (after o (snd (walk o S early)) (with_read e (ask e ⊕ d))) with (after o (snd (walk o S early)) e).
  cbn [ask with_read]. rewrite pair_plus. same_terms.
Qed.

(* rowsum(a ∘ S ∘ G): the state before the decay, decayed, and the gradient of the state after it. *)
Definition decay_gradient o S e G : numbers K :=
  pair ((if key_decayed o then S ⊕ write e else S) ◁ decay e) (if query_decayed o then G ⊕ ask e else G).

(* All of the loss that depends on a decay. *)
Theorem gradient_of_decay o S early e later G :
  exists rest, forall a,
    loss o S (early ++ with_decay e a :: later) G
    = decay_gradient o (snd (walk o S early)) (with_decay e a) (gradient_before o later G) ⊕ rest.
Proof.
  set (S' := snd (walk o S early)). set (G' := gradient_before o later G).
  exists (total_of (fst (walk o S early)) ⊕ written o later G
    ⊕ match o with
      | DAR => pair (write e) (ask e) ⊕ pair (write e) G'
      | ARD => pair S' (ask e) ⊕ pair (write e) (ask e)
      | RDA => pair S' (ask e) ⊕ pair (write e) G'
      | DRA => pair (write e) G'
      | RAD => pair S' (ask e)
      | ADR => zero
      end).
  intros a. rewrite loss_split, loss_next, adjoint_identity. fold S' G'.
  destruct o; unfold decay_gradient, seen, after, faded, own, kept; cbn -[plus pair];
    rewrite ?through_one, ?plus_zero, ?through_plus, ?plus_pair, ?pair_plus, ?plus_zero; same_terms.
Qed.

(* ---------------------------------------------------------------- the usual formula, without its subtraction *)

Theorem cumulative_sums o S e later G :
  let G' := gradient_before o later G in
  let (outs, end_) := walk o (after o S e) later in
  decay_gradient o S e G'
    ⊕ ((if key_decayed o then zero else pair (write e) (write_gradient o G' e)) ⊕ written o later G)
  = ((if query_decayed o then pair (seen o S e) (ask e) else zero) ⊕ total_of outs) ⊕ pair end_ G.
Proof.
  intros G'. pose proof (adjoint_identity o later G (after o S e)) as same. unfold loss in same. fold G' in same.
  destruct (walk o (after o S e) later) as [outs end_]. rewrite <- (plus_assoc _ _ (total_of outs)), same.
  clear same. destruct o;
    unfold decay_gradient, write_gradient, seen, after, faded, own, kept; cbn -[plus pair];
    rewrite ?through_one, ?plus_zero, ?zero_plus, ?through_plus, ?plus_pair, ?pair_plus, ?plus_zero; same_terms.
Qed.

End Gradients.
