(* Halving, level by level, visits every pair of positions once.

   At level h = 1, 2, 4, .. time lies in blocks of 2h, and the right half of every block meets the left one.
   Models the loops over h in kernels/tree.py: `tree_map`, `climb_both`, `descend`; `left` and `right` cut [.., N, D]
   into blocks of 2h by reshaping, so that position p lies in block p / 2h. *)

Require Export Arith Lia List.
From Mixerzoo Require Export Sums.

Definition block h p := 2 * h * (p / (2 * h)).  (* where the block of position p begins *)
Definition in_right h p := h <=? p mod (2 * h).

(* The start of the block of 2^d positions that p lies in. *)
Definition start d p := p - p mod 2 ^ d.

Lemma block_of p h : h > 0 -> p = block h p + p mod (2 * h) /\ p mod (2 * h) < 2 * h.
Proof.
  intros some. split; [apply Nat.div_mod; lia|apply Nat.mod_upper_bound; lia].
Qed.

(* The block of 2h is two blocks of h: of the one p lies in, and the other. *)
Lemma one_half d p :
  let h := 2 ^ d in
  start (S d) p = block h p
  /\ start d p = (if in_right h p then block h p + h else block h p)
  /\ p mod 2 ^ S d < 2 * h
  /\ p = block h p + p mod 2 ^ S d
  /\ p mod h = (if in_right h p then p mod 2 ^ S d - h else p mod 2 ^ S d).
Proof.
  intros h. assert (some : h > 0) by (unfold h; pose proof (Nat.pow_nonzero 2 d); lia).
  assert (twice : 2 ^ S d = 2 * h) by reflexivity.
  unfold start. rewrite twice. change (2 ^ d) with h.
  destruct (block_of p h some) as [here small]. unfold in_right.
  assert (rest : p mod h = if h <=? p mod (2 * h) then p mod (2 * h) - h else p mod (2 * h)).
  { set (r := p mod (2 * h)) in *. unfold block in here. destruct (Nat.leb_spec h r).
    - symmetry. apply (Nat.mod_unique p h (2 * (p / (2 * h)) + 1)); nia.
    - symmetry. apply (Nat.mod_unique p h (2 * (p / (2 * h)))); nia. }
  repeat split; [lia| |easy|easy|easy].
  rewrite rest. destruct (Nat.leb_spec h (p mod (2 * h))); lia.
Qed.

(* `power_of_two`: 2^(log2_up n) positions are at least n. *)
Lemma covers n : n <= 2 ^ Nat.log2_up n.
Proof.
  destruct (le_lt_dec n 1); [|now apply Nat.log2_up_spec]. pose proof (Nat.pow_nonzero 2 (Nat.log2_up n)). lia.
Qed.

Section Halves.
Context {X : sums}.

(* For position p, the left halves that it meets from the right are all positions before it in its block. *)
Definition meets (f : nat -> X) p h : X := if in_right h p then sum f (block h p) h else zero.

Theorem halves_visit_once f p d : sum (fun j => meets f p (2 ^ j)) 0 d = sum f (start d p) (p - start d p).
Proof.
  induction d as [|d IH].
  - unfold start. simpl. replace (p - (p - 0)) with 0 by lia. reflexivity.
  - rewrite sum_last, IH, Nat.add_0_l. unfold meets.
    destruct (one_half d p) as (whole & half & small & here & _). rewrite whole, half.
    destruct (in_right (2 ^ d) p) eqn:where_.
    + apply Nat.leb_le in where_. replace (2 * 2 ^ d) with (2 ^ S d) in where_ by reflexivity.
      replace (p - block (2 ^ d) p) with (2 ^ d + (p - (block (2 ^ d) p + 2 ^ d))) by lia.
      now rewrite sum_split, plus_comm.
    + apply plus_zero.
Qed.

(* Blocks of 2^d cover n positions: all positions before p are met. *)
Corollary halves_visit_all f p n : p < n -> sum (fun j => meets f p (2 ^ j)) 0 (Nat.log2_up n) = sum f 0 p.
Proof.
  intros within. rewrite halves_visit_once. unfold start.
  pose proof (covers n) as enough.
  rewrite Nat.mod_small by lia. now replace (p - p) with 0 by lia; rewrite Nat.sub_0_r.
Qed.

(* And from the left, the right halves that p meets are all positions after it in its block. *)
Definition is_met (f : nat -> X) p h : X := if in_right h p then zero else sum f (block h p + h) h.

Theorem halves_are_visited_once f p d :
  sum (fun j => is_met f p (2 ^ j)) 0 d = sum f (p + 1) (start d p + 2 ^ d - (p + 1)).
Proof.
  induction d as [|d IH].
  - unfold start. simpl. now replace (p - 0 + 1 - (p + 1)) with 0 by lia.
  - rewrite sum_last, IH, Nat.add_0_l. unfold is_met.
    destruct (one_half d p) as (whole & half & small & here & rest). rewrite whole, half.
    assert (below : p mod 2 ^ d < 2 ^ d) by (apply Nat.mod_upper_bound; pose proof (Nat.pow_nonzero 2 d); lia).
    replace (2 ^ S d) with (2 * 2 ^ d) in * by reflexivity. rewrite rest in below.
    destruct (in_right (2 ^ d) p) eqn:where_.
    + rewrite plus_zero. f_equal. lia.
    + apply Nat.leb_gt in where_.
      replace (block (2 ^ d) p + 2 * 2 ^ d - (p + 1)) with ((block (2 ^ d) p + 2 ^ d - (p + 1)) + 2 ^ d) by lia.
      rewrite sum_split. do 2 f_equal. lia.
Qed.

Corollary halves_are_visited_all f p n :
  p < n ->
  sum (fun j => is_met f p (2 ^ j)) 0 (Nat.log2_up n) = sum f (p + 1) (2 ^ Nat.log2_up n - (p + 1)).
Proof.
  intros within. rewrite halves_are_visited_once. unfold start. pose proof (covers n) as enough.
  rewrite Nat.mod_small by lia. now replace (p - p) with 0 by lia.
Qed.

(* For position t, the pairs (s, u) of left and right halves with s < stop and u >= from: those that straddle t,
   if stop and from are t or t + 1. In a right half, all s and late u; in a left half, early s and all u. *)
Variables (f : nat -> nat -> X) (t stop from : nat).
Hypothesis stop_here : t <= stop <= t + 1.
Hypothesis from_here : t <= from <= t + 1.

Definition straddles h : X :=
  let B := block h t in
  if in_right h t
  then sum (fun u => sum (fun s => f s u) B h) from (B + 2 * h - from)
  else sum (fun s => sum (fun u => f s u) (B + h) h) B (stop - B).

Definition earlier s u : X := if s <? u then f s u else zero.
Definition straddling B E : X := sum (fun s => sum (earlier s) from (E - from)) B (stop - B).

Theorem halves_straddle_once d :
  sum (fun j => straddles (2 ^ j)) 0 d = straddling (start d t) (start d t + 2 ^ d).
Proof.
  induction d as [|d IH].
  - unfold straddling, start. simpl. symmetry. apply sum_zero. intros s here. apply sum_zero. intros u there.
    unfold earlier. destruct (Nat.ltb_spec s u); [|reflexivity].
    assert (t mod 1 = 0) by apply Nat.mod_1_r. lia.
  - rewrite sum_last, IH, Nat.add_0_l. unfold straddles, straddling.
    destruct (one_half d t) as (whole & half & small & here & _). rewrite whole, half.
    set (h := 2 ^ d) in *. set (B := block h t) in *.
    replace (2 ^ S d) with (2 * h) in * by reflexivity.
    destruct (in_right h t) eqn:where_.
    + apply Nat.leb_le in where_. replace (B + h + h) with (B + 2 * h) by lia.
      replace (stop - B) with (h + (stop - (B + h))) by lia. rewrite sum_split, plus_comm. f_equal.
      rewrite sum_sums. apply sum_ext. intros s left_. apply sum_ext. intros u right_.
      unfold earlier. now destruct (Nat.ltb_spec s u); [|lia].
    + apply Nat.leb_gt in where_. rewrite <- sum_plus. apply sum_ext. intros s left_.
      replace (B + 2 * h - from) with ((B + h - from) + h) by lia. rewrite sum_split. f_equal.
      replace (from + (B + h - from)) with (B + h) by lia. apply sum_ext. intros u right_.
      unfold earlier. now destruct (Nat.ltb_spec s u); [|lia].
Qed.

Corollary halves_straddle_all n :
  t < n -> sum (fun j => straddles (2 ^ j)) 0 (Nat.log2_up n) = straddling 0 (2 ^ Nat.log2_up n).
Proof.
  intros within. rewrite halves_straddle_once. unfold start.
  pose proof (covers n) as enough.
  rewrite Nat.mod_small by lia. now rewrite Nat.sub_diag.
Qed.

End Halves.
