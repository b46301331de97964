(* Transitions that are maps, composed one after the other: the delta rule is a recurrence like the others.

   So everything in Recurrence.v and Scan.v holds of it: pieces, chunks, trees of compositions, masks, and states
   handed from one rank to the next. Models kernels/forms.py: the D and A of `walk` with beta, or with x and y. *)

From Mixerzoo Require Export Delta.

Record additive_map (X : sums) := AdditiveMap {
  image : X -> X;
  keeps_sums : additive image;
}.
Arguments image {_} _ _.

Definition maps (X : sums) : core.
Proof.
  refine (Core (list (additive_map X)) [] (@app _) X
    (fun S fs => fold_left (fun S f => image f S) fs S) _ _ _ _ _ _).
  - apply app_assoc.
  - reflexivity.
  - apply app_nil_r.
  - reflexivity.
  - intros S fs gs. apply fold_left_app.
  - intros fs. induction fs as [|f fs [IH0 IHplus]]; split; intros; simpl; try reflexivity.
    + rewrite (of_zero _ (keeps_sums _ f)). apply IH0.
    + rewrite (of_plus _ (keeps_sums _ f)). apply IHplus.
Defined.

Section Maps.
Context {C : core} {Q : reads C} {V : erasable C}.
Implicit Types (S : state C) (e : erasing Q V).

(* S - k beta (S^T k)^T of the decayed state, or diag(a) S + x (S^T y)^T. *)
Definition erased e S : state C :=
  match erases e with
  | Rule beta _ => (S ◁ fades e) ⊕ outer (at_key e) (beta (minus (look (at_key e) (S ◁ fades e))))
  | General x y => (S ◁ fades e) ⊕ outer x (look y S)
  end.

Lemma erased_additive e : additive (erased e).
Proof.
  unfold erased. destruct (erases e) as [beta linear|x y]; split; intros.
  - rewrite through_zero, (of_zero _ (look_additive _ V _)), minus_zero, (of_zero _ linear),
      (of_zero _ (outer_additive _ V _)). apply plus_zero.
  - rewrite through_plus, (of_plus _ (look_additive _ V _)), minus_plus, (of_plus _ linear),
      (of_plus _ (outer_additive _ V _)). apply plus_exchange.
  - rewrite through_zero, (of_zero _ (look_additive _ V _)), (of_zero _ (outer_additive _ V _)). apply plus_zero.
  - rewrite through_plus, (of_plus _ (look_additive _ V _)), (of_plus _ (outer_additive _ V _)).
    apply plus_exchange.
Qed.

Definition added e : state C :=
  match erases e with
  | Rule beta _ => outer (at_key e) (beta (value e))
  | General _ _ => outer (at_key e) (value e)
  end.

Definition as_event e : event (maps (state C)) := ([AdditiveMap _ (erased e) (erased_additive e)], added e).

Theorem delta_is_recurrence o S l :
  one_of_reads o -> snd (delta_walk o S l) = @recurrent (maps (state C)) S (map as_event l).
Proof.
  intros which. revert S. induction l as [|e l IH]; intros S; [reflexivity|].
  unfold delta_walk in *. cbn [Loop.walk map]. rewrite delta_step_is_plain by easy. cbv zeta.
  set (next := after o S _).
  transitivity (snd (Loop.walk (delta_step o) next l)); [now destruct (Loop.walk (delta_step o) next l)|].
  rewrite IH. change (@recurrent (maps (state C)) S (as_event e :: map as_event l))
    with (@recurrent (maps (state C)) (erased e S ⊕ added e) (map as_event l)).
  f_equal.
  unfold next, after, kept, plain, found, reads_before, known, erase_x, erase_y, erased, added, read_order.
  assert (late : key_decayed o = false) by now destruct which as [-> | ->].
  rewrite late. destruct (erases e) as [beta linear|x y]; cbn -[plus look outer].
  - rewrite zero_plus, (of_plus _ linear), (of_plus _ (outer_additive _ V _)), <- !plus_assoc. f_equal.
    apply plus_comm.
  - rewrite through_one, <- !plus_assoc. f_equal. apply plus_comm.
Qed.

End Maps.
