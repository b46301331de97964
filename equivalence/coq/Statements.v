(* What is proved, each statement written out once more: a lemma that says something else does not pass here.

   The comment above a statement names the theorems of the catalogue that cite it, says it in words, and names
   what it models. equivalence/machine_checked.py reads these comments, and asks of each lemma what it assumes. *)

From Mixerzoo Require Import Recurrence Loop Scan Orders Attention Halves Forms Gradients Straddle.
From Mixerzoo Require Import Delta DeltaGradient Maps Matrices.

(** forms/recurrent
    The state after a sequence is the initial one through all decays, plus each write through those after it.
    Models kernels/forms.py: walk, carry. *)
Check (@recurrent_is_parallel : forall (C : core) (l : list (event C)) (S : state C),
  recurrent S l = (S ◁ total l) ⊕ parallel l).

(** forms/chunk
    It is the state after any chunking of the sequence, of chunks of any lengths.
    Models kernels/forms.py: carry, in_blocks. *)
Check (@any_chunking : forall (C : core) (chunks : list (list (event C))) (S : state C),
  recurrent S (concat chunks) = fold_left after_chunk chunks S).

(** forms/scan
    Any tree of compositions of steps is all their decays and the sum of their writes.
    Models kernels/scan.py: compose. *)
Check (@any_tree : forall (C : core) (t : composition C), joined t = (total (leaves t), parallel (leaves t))).

(** forms/scan-associative
    The operator of the scan is associative.
    Models kernels/scan.py: compose. *)
Check (@join_assoc : forall (C : core) (e f g : event C), join (join e f) g = join e (join f g)).

(** forms/scan-network
    The network of the scan, group by group, gives all states, for any operator whose compositions act as their
    steps, any lengths of groups and any depth.
    Models kernels/scan.py: lockstep, prefixes. *)
Check (@lockstep_is_states : forall (State E : Type) (after : State -> E -> State) (op : E -> E -> E),
  (forall S x y, after S (op x y) = after (after S x) y) ->
  forall (depth : nat) (group_length : nat -> nat) (any : E), (forall n, group_length n > 0) ->
  forall (S : State) (l : list E), lockstep after op depth group_length any S l = states_after after S l).

(** forms/loop, forms/recurrent, delta/recurrent
    The loop over blocks of any size is the definition, if its body is on each block.
    Models kernels/forms.py: in_blocks. *)
Check (@loop_is_walk : forall (State Step Output : Type) (one_step : State -> Step -> list Output * State)
  (steps : nat -> Step) (body : State -> nat -> nat -> list Output * State) (S : State) (T size : nat),
  size > 0 ->
  (forall S i j, i < j <= T -> j <= i + size -> body S i j = Loop.walk one_step S (slice steps i (j - i))) ->
  in_blocks body S T size = Loop.walk one_step S (slice steps 0 T)).

(** forms/split, delta/split
    A sequence run in two pieces, the state handed on, is the sequence run at once: outputs and state.
    Models kernels/forms.py: walk. *)
Check (@walk_split : forall (State Step Output : Type) (one_step : State -> Step -> list Output * State)
  (l m : list Step) (S : State),
  Loop.walk one_step S (l ++ m) =
  let (o, S) := Loop.walk one_step S l in
  let (p, S) := Loop.walk one_step S m in (o ++ p, S)).

(** forms/mask
    A masked step is the identity: the outputs at the other steps, and the state, are those without it.
    Models kernels/ops.py: apply_mask. *)
Check (@mask_outputs : forall (C : core) (Q : reads C) (o : order)
  (keeps : list bool) (l : list (step Q)) (S : state C),
  let (outs, end_) := walk o S (mask_steps keeps l) in
  (those_kept keeps outs, end_) = walk o S (those_kept keeps l)).

(** forms/reset, links/reset-is-empty-state
    What follows a decay of 0 does not depend on the state before it, in the orders whose reads are decayed.
    Models kernels/forms.py: walk, with a log-decay of -inf. *)
Check (@reset_outputs : forall (C : core) (Q : reads C) (o : order) (S S' : state C) (e : step Q)
  (l : list (step Q)),
  query_decayed o = true -> forgets (decay e) -> walk o S (e :: l) = walk o S' (e :: l)).

(** forms/reset
    Packed sequences, each of which starts by forgetting, leave the state that each leaves alone.
    Models kernels/forms.py: walk, with a log-decay of -inf. *)
Check (@packed_is_apart : forall (C : core) (S : state C) (before l : list (event C)),
  resets l -> recurrent S (before ++ l) = recurrent zero l).

(** forms/parallel-body
    What a step reads is the writes it may see, each through the decays between, and the initial state.
    Models kernels/forms.py: segment_sums, causal, weights, read_entry; kernels/order.py: Order. *)
Check (@attention_is_walk : forall (C : core) (Q : reads C) (o : order) (steps : nat -> step Q) (S : state C)
  (i n t : nat),
  i <= t < i + n -> reads_at o steps S i t = attention o steps i n t ⊕ (S ◁ prefix o steps i t)).

(** forms/parallel
    Attention, any number of queries at a time, is the definition: outputs and state, in all six orders.
    Models kernels/forms.py: attend. *)
Check (@parallel_form : forall (C : core) (Q : reads C) (o : order) (steps : nat -> step Q) (S : state C)
  (n rows : nat),
  rows > 0 -> (attend_rows o steps n S rows 0 n, carry o steps S 0 n) = walk o S (slice steps 0 n)).

(** forms/chunk-body
    The levels of the tree and its diagonal count each pair once, with its weight: they are the attention of a
    slice of any length, padded to a power of two.
    Models kernels/tree.py: tree_map, tree, left, right, in_chunks, own_pairs. *)
Check (@tree_is_attention : forall (C : core) (Q : reads C) (o : order) (steps : nat -> step Q) (i n : nat)
  (idle : query Q) (t : nat),
  i <= t < i + n -> tree o steps i n idle t = attention o steps i n t).

(** forms/chunk-body
    One chunk, by the weight matrix or by the tree, is its steps of the definition: outputs and state.
    Models kernels/forms.py: chunk, chunks, chunk_map. *)
Check (@chunk_is_walk : forall (C : core) (Q : reads C) (o : order) (steps : nat -> step Q) (how : inside)
  (S : state C) (i j : nat),
  i <= j -> chunk o steps how S i j = walk o S (slice steps i (j - i))).

(** forms/chunk
    The chunk form is the definition, for every size of chunk: outputs and state, in all six orders.
    Models kernels/forms.py: chunk_form. *)
Check (@chunk_form : forall (C : core) (Q : reads C) (o : order) (steps : nat -> step Q) (how : inside)
  (S : state C) (T size : nat),
  size > 0 -> in_blocks (chunk o steps how) S T size = walk o S (slice steps 0 T)).

(** forms/scan-body
    A scan of a slice is its steps of the definition: outputs and state.
    Models kernels/scan.py: scanned_states, scan. *)
Check (@scan_is_walk : forall (C : core) (Q : reads C) (p : plan) (o : order) (steps : nat -> step Q) (S : state C)
  (i j : nat),
  i <= j -> scan p o steps S i j = walk o S (slice steps i (j - i))).

(** forms/scan
    The scan form is the definition, for every size of block: outputs and state, in all six orders.
    Models kernels/forms.py: scan_form. *)
Check (@scan_form : forall (C : core) (Q : reads C) (p : plan) (o : order) (steps : nat -> step Q) (S : state C)
  (T size : nat),
  size > 0 -> in_blocks (scan p o steps) S T size = walk o S (slice steps 0 T)).

(** forms/chunk
    So it is on states of K by V numbers of any commutative ring, decayed over keys and values.
    Models kernels/forms.py: chunk_form, decay_state, read_state. *)
Check (@chunk_form_of_matrices : forall (F : ring) (K V : nat) (o : order)
  (steps : nat -> step (by_queries F K V)) (how : inside) (S : state (diagonal F K V)) (T size : nat),
  size > 0 -> in_blocks (chunk o steps how) S T size = walk o S (slice steps 0 T)).

(** forms/chunk-body
    There, a pair of the tree is ((q ∘ prefix a)·(k ∘ suffix a)) (v ∘ suffix b) ∘ prefix b.
    Models kernels/tree.py: tree, Climb. *)
Check (@read_pair : forall (F : ring) (K V : nat) (q k : vec F K) (v : values_sums F V)
  (suffix_a : vec F K) (suffix_b : vec F V) (prefix_a : vec F K) (prefix_b : vec F V),
  read_state F K V q
    (decay_state F K V (decay_state F K V (outer F K V k v) (suffix_a, suffix_b)) (prefix_a, prefix_b))
  = row F V (fun j =>
      mul (mul (dot F (fun i =>
                  mul (mul (at_ F q i) (at_ F prefix_a i)) (mul (at_ F k i) (at_ F suffix_a i))) K)
               (mul (at_ F v j) (at_ F suffix_b j)))
          (at_ F prefix_b j))).

(** forms/chunk-body
    There, decays that have inverses go into queries and keys: (q ∘ E_t)·(k ∘ 1/E_s) is the pair's score.
    Models kernels/fold.py: folded. *)
Check (@read_folded : forall (F : ring) (K V : nat) (q k : vec F K) (v : values_sums F V)
  (up_to inverse between : vec F K),
  (forall i, i < K -> mul (at_ F up_to i) (at_ F inverse i) = r1) ->
  read_state F K V (times F q (times F up_to between)) (outer F K V (times F k inverse) v)
  = read_state F K V q (decay_state F K V (outer F K V k v) (between, ones F V))).

(** orders/from-one
    What each order reads is what RDA reads, with the step's own decay and write added locally.
    Models kernels/order.py: Order. *)
Check (@orders_from_one : forall (C : core) (Q : reads C) (S : state C) (e : step Q),
  seen DRA S e = seen RDA S e ◁ decay e
  /\ seen DAR S e = (seen RDA S e ◁ decay e) ⊕ write e
  /\ seen RAD S e = seen RDA S e
  /\ seen ARD S e = seen RDA S e ⊕ write e
  /\ seen ADR S e = (seen RDA S e ◁ decay e) ⊕ (write e ◁ decay e)).

(** orders/from-one
    The states of each order are those of RDA, of which a write may be the decayed one.
    Models kernels/order.py: Order.key_decayed. *)
Check (@states_from_one : forall (C : core) (Q : reads C) (o : order) (S : state C) (e : step Q),
  after o S e = after RDA S (with_kept_write o e)).

(** orders/read-before
    Reading before the write is reading after it, of keys, values and decays one step late.
    Models kernels/order.py: BEFORE. *)
Check (@read_before_is_late : forall (C : core) (Q : reads C) (steps : nat -> step Q) (S : state C) (n : nat),
  outputs RDA steps S 0 n = outputs DAR (one_step_late steps) S 0 n).

(** gradients/closure
    The adjoint of an order is its events backwards, reads and writes swapped.
    Models kernels/order.py: Order.adjoint. *)
Check (@adjoint_is_reversed : forall o : order, events (adjoint o) = map swap (rev (events o))).

(** gradients/closure, gradients/recurrent
    Outputs and final state, weighed by their gradients, are the initial state and all writes, weighed by theirs:
    those of the recurrence in reversed time and adjoint order.
    Models kernels/gradients.py: walk_gradient. *)
Check (@adjoint_identity : forall (C : core) (K : dual C) (o : order) (l : list (step (cotangents K)))
  (G : state (costates K)) (S : state C),
  loss o S l G = pair S (gradient_before o l G) ⊕ written o l G).

(** gradients/recurrent, gradients/scan, gradients/closure
    The gradient of a write is what the recurrence in reversed time and adjoint order reads there.
    Models kernels/gradients.py: walk_gradient; kernels/scan_gradient.py: scan_gradient. *)
Check (@gradient_of_write : forall (C : core) (K : dual C) (o : order) (S : state C)
  (early : list (step (cotangents K))) (e : step (cotangents K)) (later : list (step (cotangents K)))
  (G : state (costates K)) (d : state C),
  loss o S (early ++ with_write e (write e ⊕ d) :: later) G
  = loss o S (early ++ e :: later) G ⊕ pair d (write_gradient o (gradient_before o later G) e)).

(** gradients/recurrent, gradients/scan, gradients/chunk, gradients/chunk-body
    The gradient of a read is the state that it reads (which is the attention of a slice: see forms).
    Models kernels/gradients.py: walk_gradient; kernels/scan_gradient.py: scan_gradient. *)
Check (@gradient_of_read : forall (C : core) (K : dual C) (o : order) (S : state C)
  (early : list (step (cotangents K))) (e : step (cotangents K)) (later : list (step (cotangents K)))
  (G d : state (costates K)),
  loss o S (early ++ with_read e (plus (ask e : state (costates K)) d) :: later) G
  = loss o S (early ++ e :: later) G ⊕ pair (seen o (snd (walk o S early)) e) d).

(** gradients/recurrent, gradients/scan, gradients/closure
    The gradient of the initial state is the last state of the recurrence in reversed time.
    Models kernels/gradients.py: vjp. *)
Check (@gradient_of_state : forall (C : core) (K : dual C) (o : order) (S : state C)
  (l : list (step (cotangents K))) (G : state (costates K)) (d : state C),
  loss o (S ⊕ d) l G = loss o S l G ⊕ pair d (gradient_before o l G)).

(** gradients/recurrent, gradients/scan
    A decay enters the loss as the decayed state, weighed by the gradient of the state after it, and nowhere else.
    Models kernels/gradients.py: walk_gradient; kernels/scan_gradient.py: scan_gradient. *)
Check (@gradient_of_decay : forall (C : core) (K : dual C) (o : order) (S : state C)
  (early : list (step (cotangents K))) (e : step (cotangents K)) (later : list (step (cotangents K)))
  (G : state (costates K)),
  exists rest, forall a,
    loss o S (early ++ with_decay e a :: later) G
    = decay_gradient o (snd (walk o S early)) (with_decay e a) (gradient_before o later G) ⊕ rest).

(** gradients/recurrent
    Of K by V numbers, <S^T q, do> is <S, q do^T>, and the gradient of q is S do.
    Models kernels/gradients.py: walk_gradient. *)
Check (@gradient_of_query : forall (F : ring) (K V : nat) (d : vec F K) (S : matrix F K V) (g : values_sums F V),
  all_entries F K V S (outer F K V d g)
  = dot F (fun i => mul (at_ F d i) (dot F (fun j => mul (cell F K V S i j) (at_ F g j)) V)) K).

(** gradients/recurrent
    That of a key k, in k v^T, is G v.
    Models kernels/gradients.py: walk_gradient. *)
Check (@gradient_of_key : forall (F : ring) (K V : nat) (d : vec F K) (v : values_sums F V) (G : matrix F K V),
  all_entries F K V (outer F K V d v) G
  = dot F (fun i => mul (at_ F d i) (dot F (fun j => mul (cell F K V G i j) (at_ F v j)) V)) K).

(** gradients/recurrent
    That of a value v is G^T k.
    Models kernels/gradients.py: walk_gradient. *)
Check (@gradient_of_value : forall (F : ring) (K V : nat) (k : vec F K) (d : values_sums F V) (G : matrix F K V),
  all_entries F K V (outer F K V k d) G
  = dot F (fun j => mul (at_ F d j) (dot F (fun i => mul (cell F K V G i j) (at_ F k i)) K)) V).

(** gradients/cumulative-sums
    The gradient of a decay, plus the later writes weighed by their gradients, is the later reads weighed by
    theirs, plus the final state weighed by its own; six orders.
    Models the usual formula, with its difference on the other side. *)
Check (@cumulative_sums : forall (C : core) (K : dual C) (o : order) (S : state C) (e : step (cotangents K))
  (later : list (step (cotangents K))) (G : state (costates K)),
  let G' := gradient_before o later G in
  let (outs, end_) := walk o (after o S e) later in
  decay_gradient o S e G'
    ⊕ ((if key_decayed o then zero else pair (write e) (write_gradient o G' e)) ⊕ written o later G)
  = ((if query_decayed o then pair (seen o S e) (ask e : state (costates K)) else zero) ⊕ total_of outs)
    ⊕ pair end_ G).

(** gradients/chunk, gradients/chunk-body
    The gradient of the state before a slice is that of the state after it, through all decays, and each read
    through the decays before it.
    Models kernels/gradients.py: _outside. *)
Check (@read_of_gradient : forall (C : core) (K : dual C) (o : order) (steps : nat -> step (cotangents K))
  (n i : nat) (Z : state C) (G : state (costates K)),
  pair Z (gradient_before o (slice steps i n) G)
  = pair (Z ◁ product (fun r => decay (steps r)) i n) G
    ⊕ sum (fun u => pair (Z ◁ prefix o steps i u) (ask (steps u))) i n).

(** gradients/chunk, gradients/chunk-body
    What a write gives to the loss is its pairs with the reads after it, and what of it leaves the slice.
    Models kernels/gradients.py: _outside, _where_all_decay_alike. *)
Check (@write_is_pairs : forall (C : core) (K : dual C) (o : order) (steps : nat -> step (cotangents K))
  (G : state (costates K)) (i n s : nat),
  i <= s < i + n ->
  pair (write (steps s))
    (write_gradient o (gradient_before o (slice steps (s + 1) (i + n - (s + 1))) G) (steps s))
  = pair (write (steps s) ◁ suffix o steps s (i + n)) G
    ⊕ sum (fun u => pair (write (steps s) ◁ segment o steps s u) (ask (steps u))) (s + 1) (i + n - (s + 1))
    ⊕ (if strict o then zero
       else pair (write (steps s) ◁ segment o steps s s) (ask (steps s) : state (costates K)))).

(** gradients/chunk, gradients/chunk-body
    The levels of the tree count the reads after a write once each, in slices of every length.
    Models kernels/tree.py: down, descend. *)
Check (@writes_by_tree : forall (C : core) (K : dual C) (o : order) (steps : nat -> step (cotangents K))
  (i n s : nat),
  s < n ->
  sum (fun u => pair (write (steps (i + s)) ◁ segment o steps (i + s) u) (ask (steps u)))
    (i + s + 1) (i + n - (i + s + 1))
  = sum (fun level => is_met (inside_pair o steps i n s) s (2 ^ level)) 0 (Nat.log2_up n)).

(** gradients/chunk, gradients/chunk-body
    The gradient of a decay is the sum over what it weighs: the state through the slice, the state and its reads,
    writes and what leaves the slice, and the pairs of a write and a read that straddle it.
    Models kernels/gradients.py: _outside, _where_all_decay_alike. *)
Check (@decay_is_pairs : forall (C : core) (K : dual C) (o : order) (steps : nat -> step (cotangents K))
  (S : state C) (G : state (costates K)) (i n t : nat),
  i <= t < i + n ->
  decay_gradient o (state_after o steps S i (t - i)) (steps t)
    (gradient_before o (slice steps (t + 1) (i + n - (t + 1))) G)
  = pair (S ◁ product (fun r => decay (steps r)) i n) G
    ⊕ sum (fun u => pair (S ◁ prefix o steps i u) (ask (steps u))) (from o t) (i + n - from o t)
    ⊕ sum (fun s => pair (write (steps s) ◁ suffix o steps s (i + n)) G) i (stop o t - i)
    ⊕ sum (fun s => sum (fun u => pair (write (steps s) ◁ segment o steps s u) (ask (steps u)))
                      (from o t) (i + n - from o t)) i (stop o t - i)).

(** gradients/chunk, gradients/chunk-body
    The levels of the tree count each pair that straddles a step once, in slices of every length.
    Models kernels/tree.py: down, descend. *)
Check (@inside_by_tree : forall (C : core) (K : dual C) (o : order) (steps : nat -> step (cotangents K))
  (i n t : nat),
  t < n ->
  sum (fun s => sum (fun u => pair (write (steps s) ◁ segment o steps s u) (ask (steps u)))
                  (from o (i + t)) (i + n - from o (i + t))) i (stop o (i + t) - i)
  = (if andb (query_decayed o) (key_decayed o)
     then pair (write (steps (i + t)) ◁ decay (steps (i + t))) (ask (steps (i + t)) : state (costates K))
     else zero)
    ⊕ sum (fun level => straddles (inside_pair o steps i n) t (stop o t) (from o t) (2 ^ level))
        0 (Nat.log2_up n)).

(** delta/chunk-body
    What the steps of a slice write is the one solution of a unit lower triangular system.
    Models kernels/delta.py: solution. *)
Check (@system_is_right : forall (C : core) (Q : reads C) (V : erasable C) (o : order)
  (steps : nat -> erasing Q V),
  one_of_reads o -> forall (S : state C) (i n : nat) (w : nat -> values V),
  (forall t, i <= t < i + n -> solves (system steps) (right_hand_side steps S i) i w t)
  <-> (forall t, i <= t < i + n -> w t = true_write o steps S i t)).

(** delta/chunk-body
    Forward substitution solves a unit lower triangular system.
    Models kernels/delta.py: solve. *)
Check (@solve_solves : forall (C : core) (V : erasable C) (L : nat -> nat -> values V -> values V)
  (b : nat -> values V) (i n t : nat),
  i <= t < i + n -> solves L b i (solve L b i n) t).

(** delta/chunk-body
    It has no other solution.
    Models kernels/delta.py: solve. *)
Check (@solution_is_unique : forall (C : core) (V : erasable C) (L : nat -> nat -> values V -> values V)
  (b : nat -> values V) (i n : nat) (x : nat -> values V),
  (forall t, i <= t < i + n -> solves L b i x t) -> forall t, i <= t < i + n -> x t = solve L b i n t).

(** delta/chunk-body
    One chunk, with the solution for values, is its steps of the definition: outputs and state, both reads.
    Models kernels/delta.py: delta_chunk. *)
Check (@delta_chunk_is_walk : forall (C : core) (Q : reads C) (V : erasable C) (o : order)
  (steps : nat -> erasing Q V),
  one_of_reads o -> forall (how : inside) (S : state C) (i j : nat),
  i <= j -> delta_chunk o steps how S i j = delta_walk o S (slice steps i (j - i))).

(** delta/chunk
    The chunk form of the delta rule, and of any erasure, is the definition, for every size of chunk.
    Models kernels/delta.py: chunk_form. *)
Check (@delta_chunk_form : forall (C : core) (Q : reads C) (V : erasable C) (o : order)
  (steps : nat -> erasing Q V),
  one_of_reads o -> forall (how : inside) (S : state C) (T size : nat),
  size > 0 -> in_blocks (delta_chunk o steps how) S T size = delta_walk o S (slice steps 0 T)).

(** delta/chunk
    So it is on states of K by V numbers of any commutative ring.
    Models kernels/delta.py: chunk_form. *)
Check (@delta_form_of_matrices : forall (F : ring) (K V : nat) (o : order)
  (steps : nat -> erasing (by_queries F K V) (by_keys F K V)) (how : inside) (S : state (diagonal F K V))
  (T size : nat),
  one_of_reads o -> size > 0 ->
  in_blocks (delta_chunk o steps how) S T size = delta_walk o S (slice steps 0 T)).

(** delta/parallel
    One system for all steps, then attention to what solves it, is the definition.
    Models kernels/delta.py: parallel_form. *)
Check (@delta_parallel_form : forall (C : core) (Q : reads C) (V : erasable C) (o : order)
  (steps : nat -> erasing Q V),
  one_of_reads o -> forall (S : state C) (T rows : nat),
  rows > 0 -> delta_parallel o steps S T rows = delta_walk o S (slice steps 0 T)).

(** delta/recurrent
    Its states are a recurrence whose transitions are maps: what holds of the recurrence holds of it.
    Models kernels/forms.py: walk, with beta or with x and y. *)
Check (@delta_is_recurrence : forall (C : core) (Q : reads C) (V : erasable C) (o : order) (S : state C)
  (l : list (erasing Q V)),
  one_of_reads o -> snd (delta_walk o S l) = @recurrent (maps (state C)) S (map as_event l)).

(** delta/is-an-erasure
    A step of the delta rule is one of the general form with x = -β k, y = a ∘ k and β v for the value.
    Models kernels/forms.py: walk, with beta and with x and y. *)
Check (@rule_is_general : forall (F : ring) (K V : nat) (o : order) (a : vec F K) (k : vec F K)
  (v : values_sums F V) (beta : F) (q : vec F K) (S : matrix F K V),
  one_of_reads o ->
  delta_step (C := diagonal F K V) (Q := by_queries F K V) (V := by_keys F K V) o S
    (@Erasing (diagonal F K V) (by_queries F K V) (by_keys F K V)
       (a, ones F V) k v (@Rule _ (by_keys F K V) (scaled F V beta) (scaled_additive F V beta)) q)
  = delta_step (C := diagonal F K V) (Q := by_queries F K V) (V := by_keys F K V) o S
    (@Erasing (diagonal F K V) (by_queries F K V) (by_keys F K V)
       (a, ones F V) k (scaled F V beta v)
       (@General _ (by_keys F K V) (row F K (fun i => opp (mul beta (at_ F k i)))) (times F k a)) q)).

(** delta/gradient-chunk
    What the solution of a unit lower triangular system gives to any gradients, its right-hand side gives to the
    solution of the transposed system.
    Models kernels/delta.py: solve. *)
Check (@transposed_system : forall (C : core) (V : erasable C) (K : dual C) (covalues : sums)
  (inner : values V -> covalues -> numbers K),
  (forall y, additive (fun x => inner x y)) -> (forall x, additive (inner x)) ->
  forall (L : nat -> nat -> values V -> values V) (Lt : nat -> nat -> covalues -> covalues) (i n : nat),
  (forall t s x y, inner (L t s x) y = inner x (Lt t s y)) ->
  forall (x b : nat -> values V) (y c : nat -> covalues),
  (forall t, i <= t < i + n -> solves L b i x t) ->
  (forall t, i <= t < i + n -> solves_transposed covalues Lt i n c y t) ->
  sum (fun t => inner (x t) (c t)) i n = sum (fun t => inner (b t) (y t)) i n).

(** delta/gradient-chunk
    The gradient of the values of the delta rule is β times the solution of the transposed system, of the
    canonical gradients of what is written.
    Models kernels/delta.py: delta_gradient. *)
Check (@gradient_of_values : forall (C : core) (V : erasable C) (K : dual C) (covalues : sums)
  (inner : values V -> covalues -> numbers K),
  (forall y, additive (fun x => inner x y)) -> (forall x, additive (inner x)) ->
  forall (o : order) (steps : nat -> erasing (cotangents K) V) (G : state (costates K)),
  one_of_reads o ->
  forall (S : state C) (i n : nat) (Lt : nat -> nat -> covalues -> covalues) (c y : nat -> covalues),
  (forall t s x z, inner (system steps t s x) z = inner x (Lt t s z)) ->
  (forall t u, i <= t < i + n ->
     pair (Delta.outer (erase_x (steps t)) u) (path o steps G (i + n) t) = inner u (c t)) ->
  (forall t, i <= t < i + n -> solves_transposed covalues Lt i n c y t) ->
  (forall t, exists beta linear, erases (steps t) = Rule beta linear) ->
  forall d : nat -> values V,
  delta_loss o G S (slice (moved steps d) i n)
  = delta_loss o G S (slice steps i n) ⊕ sum (fun t => inner (scale_of (steps t) (d t)) (y t)) i n).
