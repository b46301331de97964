(* The scan in two levels gives every state, for every length and every length of its groups.

   Models kernels/scan.py: `lockstep` and `prefixes`, group by group, where the code takes one step of all groups at
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
(* Each step of a group as one with those before it. *)
Fixpoint prefixes_from (x : E) (l : list E) : list E :=
  x :: match l with
       | [] => []
       | y :: l => prefixes_from (op x y) l
       end.
Definition prefixes (l : list E) : list E :=
  match l with
  | [] => []
  | x :: l => prefixes_from x l
  end.
Fixpoint each_from (starts : list State) (parts : list (list E)) : list State :=
  match starts, parts with
  | start :: starts, part :: parts => map (after start) (prefixes part) ++ each_from starts parts
  | _, _ => []
  end.

(* As many steps as make whole groups; each of these as one step, and a scan of them, whose states are those at the
   starts of groups; from there every state of a group at once; and what is left one by one. The lengths of groups
   are any, by the number of steps, as is the depth. *)
Fixpoint lockstep (depth : nat) (group_length : nat -> nat) (any : E) (S : State) (l : list E) : list State :=
  match depth with
  | 0 => states_after S l
  | Datatypes.S depth =>
      let length_of_group := group_length (length l) in
      let whole := length l / length_of_group * length_of_group in
      let parts := groups (length l) length_of_group (firstn whole l) in
      let starts := S :: lockstep depth group_length any S (map (folded any) parts) in
      each_from starts parts ++ states_after (last starts S) (skipn whole l)
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

Lemma prefixes_act l S : map (after S) (prefixes l) = states_after S l.
Proof.
  destruct l as [|x l]; [reflexivity|]. simpl. revert x.
  induction l as [|y l IH]; intros x; simpl; [reflexivity|]. now rewrite IH, composes.
Qed.

Lemma each_from_starts any parts : Forall (fun part => part <> []) parts -> forall S,
  each_from (S :: states_after S (map (folded any) parts)) parts = states_after S (concat parts).
Proof.
  induction 1 as [|part parts some rest IH]; intros S; [reflexivity|].
  cbn [map states_after concat].
  rewrite states_after_app, <- (folded_acts any) by exact some.
  cbn [each_from]. rewrite prefixes_act. f_equal. apply IH.
Qed.

Lemma last_state l : forall S, last (S :: states_after S l) S = fold_left after l S.
Proof.
  induction l as [|x l IH]; intros S; [reflexivity|].
  cbn [states_after fold_left]. rewrite <- IH.
  change (last (S :: after S x :: states_after (after S x) l) S)
    with (last (after S x :: states_after (after S x) l) S).
  generalize (after S x) as start, (states_after (after S x) l) as states.
  intros start states. revert start. induction states as [|y states IHs]; intros start; [reflexivity|].
  change (last (y :: states) S = last (y :: states) start).
  clear IHs. revert y. induction states as [|z states IHs]; intros y; [reflexivity|]. apply IHs.
Qed.

Lemma folded_all any parts : Forall (fun part => part <> []) parts -> forall S,
  fold_left after (map (folded any) parts) S = fold_left after (concat parts) S.
Proof.
  induction 1 as [|part parts some rest IH]; intros S; [reflexivity|].
  cbn [map concat fold_left]. rewrite fold_left_app, (folded_acts any part S some). apply IH.
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
  set (whole := length l / group_length (length l) * group_length (length l)).
  destruct (groups_cover (length l) (group_length (length l)) (some _) (firstn whole l)) as [covered full].
  { rewrite firstn_length. lia. }
  rewrite each_from_starts by exact full. rewrite last_state, folded_all by exact full.
  rewrite covered, <- states_after_app, firstn_skipn. reflexivity.
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
