(* The scan in two levels gives every state, for every length and every length of its groups.

   Models kernels/scan.py: `lockstep` and `folded`, group by group, where the code takes one step of all groups at
   once. Of the operator only that is used which makes it one: two steps composed act as one after the other. *)

From Mixerzoo Require Import Recurrence.

Section Scan.
Context {State E : Type}.
Variable after : State -> E -> State.
Variable op : E -> E -> E.
Hypothesis composes : forall S x y, after S (op x y) = after (after S x) y.

(* What it should give: the states after each step. *)
Fixpoint states_after (S : State) (l : list E) : list State :=
  match l with
  | [] => []
  | x :: l => after S x :: states_after (after S x) l
  end.

(* ---------------------------------------------------------------- the network *)

(* Steps as one (none as any). *)
Definition folded (any : E) (l : list E) : E :=
  match l with
  | [] => any
  | x :: l => fold_left op l x
  end.
(* Groups of L steps, the last of which may be shorter. *)
Fixpoint groups (fuel L : nat) (l : list E) : list (list E) :=
  match fuel, l with
  | S fuel, _ :: _ => firstn L l :: groups fuel L (skipn L l)
  | _, _ => []
  end.
Fixpoint each_from (starts : list State) (parts : list (list E)) : list State :=
  match starts, parts with
  | start :: starts, part :: parts => states_after start part ++ each_from starts parts
  | _, _ => []
  end.

(* Each of the groups but the last as one step; a scan of these, whose states are those at the starts of the
   others; and all groups from there. The lengths of groups are any, by the number of steps, as is the depth. *)
Fixpoint lockstep (depth : nat) (group_length : nat -> nat) (any : E) (S : State) (l : list E) : list State :=
  match depth with
  | 0 => states_after S l
  | Datatypes.S depth =>
      let parts := groups (length l) (group_length (length l)) l in
      let whole := map (folded any) (removelast parts) in
      each_from (S :: lockstep depth group_length any S whole) parts
  end.

(* ---------------------------------------------------------------- why it is right *)

Lemma folded_acts any l S : l <> [] -> after S (folded any l) = fold_left after l S.
Proof.
  destruct l as [|x l]; [easy|]. intros _. simpl. revert x.
  induction l as [|y l IH]; intros x; simpl; [reflexivity|]. now rewrite IH, composes.
Qed.

Lemma states_after_app l m : forall S,
  states_after S (l ++ m) = states_after S l ++ states_after (fold_left after l S) m.
Proof. induction l as [|x l IH]; intros S; simpl; [reflexivity|]. now rewrite IH. Qed.

Lemma each_from_starts any parts : Forall (fun part => part <> []) parts -> forall S,
  each_from (S :: states_after S (map (folded any) (removelast parts))) parts = states_after S (concat parts).
Proof.
  induction 1 as [|part parts some rest IH]; intros S; [reflexivity|].
  destruct parts as [|next parts].
  - simpl. now rewrite !app_nil_r.
  - change (removelast (part :: next :: parts)) with (part :: removelast (next :: parts)).
    cbn [map states_after]. change (concat (part :: next :: parts)) with (part ++ concat (next :: parts)).
    rewrite states_after_app, <- (folded_acts any) by exact some.
    cbn [each_from]. f_equal. apply IH.
Qed.

Lemma groups_cover fuel L : L > 0 -> forall l, length l <= fuel ->
  concat (groups fuel L l) = l /\ Forall (fun part => part <> []) (groups fuel L l).
Proof.
  intros some. induction fuel as [|fuel IH]; intros l enough.
  - destruct l; [repeat constructor|simpl in enough; lia].
  - destruct l as [|x l]; [repeat constructor|]. cbn [groups concat].
    destruct (IH (skipn L (x :: l))) as [whole full].
    { rewrite skipn_length. simpl in enough. change (length (x :: l)) with (S (length l)). lia. }
    rewrite whole, firstn_skipn. split; [reflexivity|]. constructor; [|exact full].
    destruct L; [lia|discriminate].
Qed.

Theorem lockstep_is_states depth group_length any : (forall n, group_length n > 0) -> forall S l,
  lockstep depth group_length any S l = states_after S l.
Proof.
  intros some. induction depth as [|depth IH]; intros S l; [reflexivity|].
  cbn [lockstep]. rewrite IH.
  destruct (groups_cover (length l) (group_length (length l)) (some _) l) as [whole full]; [easy|].
  rewrite each_from_starts by easy. now rewrite whole.
Qed.

End Scan.

(* `scanned_states`: the state before all steps, and those after each. *)
Section States.
Context {C : core}.

Fixpoint states (S : state C) (l : list (event C)) : list (state C) :=
  S :: match l with
       | [] => []
       | e :: l => states (advance S e) l
       end.

Lemma join_composes (S : state C) e f : advance S (join e f) = advance (advance S e) f.
Proof. exact (any_tree_is_recurrent (Node (Leaf e) (Leaf f)) S). Qed.

Theorem scanned_states depth group_length any S l : (forall n, group_length n > 0) ->
  S :: lockstep advance join depth group_length any S l = states S l.
Proof.
  intros some. rewrite lockstep_is_states; [|apply join_composes|easy].
  revert S. induction l as [|e l IH]; intros S; simpl; [reflexivity|]. now rewrite <- IH.
Qed.

End States.
