(* A sequence step by step, and the loop over blocks, for every length and every size of block.

   Models kernels/forms.py: `in_blocks`, with slices as the half-open intervals that it asks for. *)

Require Import Arith Lia List.
Import ListNotations.

Section Loop.
Context {State Step Output : Type}.
Variable one_step : State -> Step -> list Output * State.

(* The definition: one step at a time. *)
Fixpoint walk (S : State) (l : list Step) : list Output * State :=
  match l with
  | [] => ([], S)
  | e :: l =>
      let (o, S) := one_step S e in
      let (outs, S) := walk S l in (o ++ outs, S)
  end.

(* A sequence run in two pieces, the state handed from one to the next. *)
Theorem walk_split l m : forall S,
  walk S (l ++ m) =
  let (o, S) := walk S l in
  let (p, S) := walk S m in (o ++ p, S).
Proof.
  induction l as [|e l IH]; intros S; simpl.
  - now destruct (walk S m).
  - destruct (one_step S e) as [o S']. rewrite IH. destruct (walk S' l) as [p S''].
    destruct (walk S'' m). now rewrite app_assoc.
Qed.

Variable steps : nat -> Step.
Definition slice i n := map steps (seq i n).  (* n steps from i on *)

Lemma slice_split i m n : slice i (m + n) = slice i m ++ slice (i + m) n.
Proof. unfold slice. now rewrite seq_app, map_app. Qed.

(* range(start, stop, size), for size > 0. *)
Fixpoint range (fuel start stop size : nat) : list nat :=
  match fuel with
  | 0 => []
  | S fuel => if start <? stop then start :: range fuel (start + size) stop size else []
  end.

(* body S i j: outputs of the slice i..j from the state S before it, and the state after it. *)
Variable body : State -> nat -> nat -> list Output * State.
Definition block_step (T size : nat) (so_far : list Output * State) (i : nat) : list Output * State :=
  let (outs, S) := so_far in
  let (o, S) := body S i (min (i + size) T) in (outs ++ o, S).
Definition in_blocks (S : State) (T size : nat) : list Output * State :=
  fold_left (block_step T size) (range T 0 T size) ([], S).

(* A body that is the definition on every slice of at most `size` steps makes a loop that is the definition. *)
Theorem loop_is_walk S T size :
  size > 0 ->
  (forall S i j, i < j <= T -> j <= i + size -> body S i j = walk S (slice i (j - i))) ->
  in_blocks S T size = walk S (slice 0 T).
Proof.
  intros some right. unfold in_blocks.
  assert (from : forall fuel i outs S, T - i <= fuel ->
    fold_left (block_step T size) (range fuel i T size) (outs, S)
    = let (o, S) := walk S (slice i (T - i)) in (outs ++ o, S)).
  { induction fuel as [|fuel IH]; intros i outs S0 enough; simpl.
    - replace (T - i) with 0 by lia. simpl. now rewrite app_nil_r.
    - destruct (Nat.ltb_spec i T) as [more|done].
      + simpl. rewrite right by lia.
        set (n := min (i + size) T - i). replace (T - i) with (n + (T - (i + n))) by lia.
        rewrite slice_split, walk_split. destruct (walk S0 (slice i n)) as [o S1]. rewrite IH by lia.
        replace (T - (i + n)) with (T - (i + size)) by lia.
        destruct (le_lt_dec (i + size) T) as [whole|tail].
        * replace (i + n) with (i + size) by lia. destruct (walk S1 _). now rewrite app_assoc.
        * replace (T - (i + size)) with 0 by lia. simpl. now rewrite !app_nil_r.
      + replace (T - i) with 0 by lia. simpl. now rewrite app_nil_r. }
  rewrite from by lia. rewrite Nat.sub_0_r. now destruct (walk S (slice 0 T)).
Qed.

End Loop.
