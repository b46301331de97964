(* The four forms are the definition: in each of the six orders, for every length, block and initial state.

   Models kernels/tree.py: `tree_map`, `tree`; kernels/forms.py: `chunk` (of which `chunks` are several, one
   after the other) and the drivers `recurrent_form`, `chunk_form`, `scan_form`; kernels/scan.py: `scan`;
   Attention.v has `parallel_form`. *)

From Mixerzoo Require Export Attention Halves.
From Mixerzoo Require Import Scan.

Section Forms.
Context {C : core} {Q : reads C}.
Implicit Types (S : state C) (steps : nat -> step Q) (o : order).

(* ---------------------------------------------------------------- the tree inside a chunk *)

(* At level h the right half of every block of 2h reads the writes of the left half, each through the suffix of
   its own half and the prefix of the other; positions count from the start i of the slice. *)
Definition across o steps i h t : state C :=
  let p := t - i in
  let middle := i + block h p + h in
  if in_right h p
  then sum (fun s => write (steps s) ◁ suffix o steps s middle ◁ prefix o steps middle t) (i + block h p) h
  else zero.

(* `pad_time`: a slice of n steps becomes one of power_of_two(n) = 2^(log2_up n), by steps that do nothing. *)
Definition padded steps i n (idle : query Q) r : step Q :=
  if r <? i + n then steps r else Step one zero idle.

(* `tree`: the diagonal, and the levels h = 1, 2, 4, .. below power_of_two(n). *)
Definition tree o steps i n idle t : state C :=
  let steps := padded steps i n idle in
  own o (steps t) ⊕ sum (fun level => across o steps i (2 ^ level) t) 0 (Nat.log2_up n).

Lemma segment_of_padded o steps i n idle s t :
  s <= t < i + n -> segment o (padded steps i n idle) s t = segment o steps s t.
Proof.
  intros within. apply product_ext. intros r here. unfold padded.
  destruct (Nat.ltb_spec r (i + n)); [reflexivity|].
  unfold first_decay, last_decay in here. destruct (key_decayed o), (query_decayed o); lia.
Qed.

Theorem tree_is_attention o steps i n idle t :
  i <= t < i + n -> tree o steps i n idle t = attention o steps i n t.
Proof.
  intros within. rewrite attention_is_earlier by easy. unfold tree. rewrite plus_comm. f_equal.
  - set (weighed s := write (steps s) ◁ segment o steps s t).
    replace (sum weighed i (t - i)) with (sum (fun s => weighed (i + s)) 0 (t - i)).
    2: { rewrite <- (sum_shift weighed). f_equal. lia. }
    rewrite <- (halves_visit_all _ (t - i) n) by lia. apply sum_ext. intros level _.
    unfold across, meets. destruct (in_right (2 ^ level) (t - i)) eqn:where_; [|reflexivity].
    apply Nat.leb_le in where_. set (h := 2 ^ level) in *.
    destruct (block_of (t - i) h) as [here _]; [unfold h; pose proof (Nat.pow_nonzero 2 level); lia|].
    rewrite sum_shift. apply sum_ext. intros s left_. unfold weighed.
    rewrite <- through_compose, segment_splits, segment_of_padded by lia.
    unfold padded. now destruct (Nat.ltb_spec (i + s) (i + n)); [|lia].
  - unfold padded. destruct (Nat.ltb_spec t (i + n)); [|lia]. symmetry. apply own_segment.
Qed.

(* ---------------------------------------------------------------- the chunk form *)

(* `chunk`: inside by the weight matrix or by the tree, from before through the state. *)
Inductive inside := ByWeights | ByTree (idle : query Q).
Definition chunk_output o steps (how : inside) S i n t : output Q :=
  read (ask (steps t))
    (match how with ByWeights => attention o steps i n t | ByTree idle => tree o steps i n idle t end)
  ⊕ read (ask (steps t)) (S ◁ prefix o steps i t).
Definition chunk o steps how S i j : list (output Q) * state C :=
  (map (chunk_output o steps how S i (j - i)) (seq i (j - i)), carry o steps S i (j - i)).

Theorem chunk_is_walk o steps how S i j : i <= j -> chunk o steps how S i j = walk o S (slice steps i (j - i)).
Proof.
  intros forward. rewrite walk_is. unfold chunk, outputs. rewrite carry_is_walk. f_equal.
  apply map_ext_in. intros t within. apply in_seq in within. unfold chunk_output.
  rewrite (attention_is_walk _ _ _ _ (j - i)), (of_plus _ (read_additive _ Q _)) by lia.
  destruct how; [reflexivity|]. now rewrite tree_is_attention by lia.
Qed.

Theorem chunk_form o steps how S T size :
  size > 0 -> in_blocks (chunk o steps how) S T size = walk o S (slice steps 0 T).
Proof.
  intros some. apply loop_is_walk; [easy|]. intros. apply chunk_is_walk. lia.
Qed.

(* ---------------------------------------------------------------- the others *)

Theorem recurrent_form o steps S T size :
  size > 0 -> in_blocks (fun S i j => walk o S (slice steps i (j - i))) S T size = walk o S (slice steps 0 T).
Proof. intros some. now apply loop_is_walk. Qed.

(* `scanned_states` and `scan`, in groups of any lengths, to any depth. *)
Definition plan := (nat * {group_length : nat -> nat | forall n, group_length n > 0})%type.
Definition scanned (p : plan) o steps S i n : list (state C) :=
  S :: lockstep advance join (fst p) (proj1_sig (snd p)) (one, zero) S
    (slice (fun t => canonical o (steps t)) i n).
Definition scan (p : plan) o steps S i j : list (output Q) * state C :=
  let states := scanned p o steps S i (j - i) in
  let read_at t :=
    read (ask (steps t)) (scan_read o (nth (t - i) states zero) (nth (t - i + 1) states zero) (steps t)) in
  (map read_at (seq i (j - i)), nth (j - i) states zero).

Lemma scanned_is_walk p o steps n : forall S i t,
  t <= n -> nth t (scanned p o steps S i n) zero = state_after o steps S i t.
Proof.
  intros S i t within. unfold scanned.
  rewrite scanned_states by exact (proj2_sig (snd p)).
  revert S i t within.
  induction n as [|n IH]; intros S i t within.
  - now replace t with 0 by lia.
  - destruct t as [|t]; [reflexivity|]. rewrite state_after_next, after_is_advance.
    unfold slice in *. cbn [seq map states nth]. apply IH. lia.
Qed.

Theorem scan_is_walk p o steps S i j : i <= j -> scan p o steps S i j = walk o S (slice steps i (j - i)).
Proof.
  intros forward. rewrite walk_is. unfold scan, outputs. cbv zeta. f_equal.
  - apply map_ext_in. intros t within. apply in_seq in within.
    rewrite !scanned_is_walk by lia. rewrite Nat.add_1_r. cbn [state_after].
    replace (i + (t - i)) with t by lia. now rewrite scan_reads_right.
  - now rewrite scanned_is_walk.
Qed.

Theorem scan_form p o steps S T size :
  size > 0 -> in_blocks (scan p o steps) S T size = walk o S (slice steps 0 T).
Proof.
  intros some. apply loop_is_walk; [easy|]. intros. apply scan_is_walk. lia.
Qed.

End Forms.
