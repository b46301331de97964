(* States of K x V numbers of any commutative ring: what the other files assume is true of them, and what they
   call reads and weights are the matrix products of the code.

   Models kernels/forms.py: `decay_state`, `read_state`, `decayed`, `carry`, `read_entry`; the products of
   `tree`. *)

Require Export Ring.
From Mixerzoo Require Export Gradients Delta.

Record ring := MakeRing {
  number :> Type;
  r0 : number;
  r1 : number;
  add : number -> number -> number;
  mul : number -> number -> number;
  sub : number -> number -> number;
  opp : number -> number;
  laws : ring_theory r0 r1 add mul sub opp eq;
}.
Arguments r0 {_}.
Arguments r1 {_}.
Arguments add {_} _ _.
Arguments mul {_} _ _.
Arguments opp {_} _.

(* ---------------------------------------------------------------- vectors, equal where their entries are *)

Fixpoint vec (A : Type) (n : nat) : Type :=
  match n with
  | 0 => unit
  | S n => (A * vec A n)%type
  end.
Fixpoint build {A} (f : nat -> A) (n : nat) : vec A n :=
  match n with
  | 0 => tt
  | S n => (f 0, build (fun i => f (S i)) n)
  end.
Fixpoint entry {A} (none : A) (n : nat) : vec A n -> nat -> A :=
  match n with
  | 0 => fun _ _ => none
  | S n => fun v i => match i with 0 => fst v | S i => entry none n (snd v) i end
  end.

Lemma entry_build {A} (none : A) n : forall f i, i < n -> entry none n (build f n) i = f i.
Proof.
  induction n as [|n IH]; intros f i below; [lia|].
  destruct i as [|i]; [reflexivity|]. apply (IH (fun i => f (S i))). lia.
Qed.

Lemma vec_ext {A} (none : A) n : forall v w : vec A n,
  (forall i, i < n -> entry none n v i = entry none n w i) -> v = w.
Proof.
  induction n as [|n IH]; intros v w same.
  - now destruct v, w.
  - destruct v as [x v], w as [y w]. f_equal.
    + apply (same 0). lia.
    + apply IH. intros i below. apply (same (S i)). lia.
Qed.

Definition vec_sums (X : sums) (n : nat) : sums.
Proof.
  refine (Sums (vec X n) (build (fun _ => zero) n)
    (fun v w => build (fun i => entry zero n v i ⊕ entry zero n w i) n) _ _ _);
    intros; apply (vec_ext zero); intros i below; rewrite ?entry_build by easy.
  - apply plus_assoc.
  - apply plus_comm.
  - apply zero_plus.
Defined.

Section Matrices.
Variable F : ring.
Add Ring numbers : (laws F).
Variables K V : nat.  (* widths of keys and of values *)

Definition number_sums : sums.
Proof. refine (Sums F r0 add _ _ _); intros; ring. Defined.

Definition values_sums : sums := vec_sums number_sums V.
Definition matrix : sums := vec_sums values_sums K.

Notation "a * b" := (mul a b).
Definition at_ {n} (v : vec F n) i : F := entry r0 n v i.
Definition cell (S : matrix) i j : F := entry r0 V (entry (zero : values_sums) K S i) j.
Definition row n (f : nat -> F) : vec F n := build f n.
Definition cells (f : nat -> nat -> F) : matrix := build (fun i => build (f i) V) K.
Definition dot f (n : nat) : F := @sum number_sums f 0 n.

Lemma at_row n f i : i < n -> at_ (row n f) i = f i.
Proof. apply entry_build. Qed.

Lemma cell_cells f i j : i < K -> j < V -> cell (cells f) i j = f i j.
Proof. intros. unfold cell, cells. now rewrite !entry_build. Qed.

Lemma cell_plus (S T : matrix) i j : i < K -> j < V -> cell (S ⊕ T) i j = add (cell S i j) (cell T i j).
Proof. intros. unfold cell. cbn. now rewrite !entry_build. Qed.

Lemma cell_zero i j : i < K -> j < V -> cell (zero : matrix) i j = r0.
Proof. intros. unfold cell. cbn. now rewrite !entry_build. Qed.

Lemma matrix_ext (S T : matrix) : (forall i j, i < K -> j < V -> cell S i j = cell T i j) -> S = T.
Proof.
  intros same. apply (vec_ext (zero : values_sums)). intros i ?. apply (vec_ext r0). intros j ?. now apply same.
Qed.

Lemma row_ext n (v w : vec F n) : (forall j, j < n -> at_ v j = at_ w j) -> v = w.
Proof. apply vec_ext. Qed.

Lemma at_plus n (v w : vec_sums number_sums n) j : j < n -> at_ (v ⊕ w) j = add (at_ v j) (at_ w j).
Proof. intros. unfold at_. cbn. now rewrite !entry_build. Qed.

Lemma at_zero n j : j < n -> at_ (zero : vec_sums number_sums n) j = r0.
Proof. intros. unfold at_. cbn. now rewrite !entry_build. Qed.

Definition at_plus_values : forall (v w : values_sums) j, _ := at_plus V.
Definition at_zero_values : forall j, j < V -> at_ (zero : values_sums) j = r0 := at_zero V.

(* Sums of numbers. *)
Lemma dot_ext (f g : nat -> F) n : (forall i, i < n -> f i = g i) -> dot f n = dot g n.
Proof. intros same. apply (@sum_ext number_sums). intros i ?. apply same. lia. Qed.
Lemma dot_plus (f g : nat -> F) n : dot (fun i => add (f i) (g i)) n = add (dot f n) (dot g n).
Proof. exact (@sum_plus number_sums f g n 0). Qed.
Lemma dot_zero (f : nat -> F) n : (forall i, i < n -> f i = r0) -> dot f n = r0.
Proof. intros none. apply (@sum_zero number_sums). intros i ?. apply none. lia. Qed.
Lemma dot_times (f : nat -> F) c n : dot f n * c = dot (fun i => f i * c) n.
Proof.
  apply (@of_sum number_sums number_sums (fun x => x * c) f n). split; intros; cbn; ring.
Qed.
Lemma times_dot (f : nat -> F) c n : c * dot f n = dot (fun i => c * f i) n.
Proof.
  apply (@of_sum number_sums number_sums (fun x => c * x) f n). split; intros; cbn; ring.
Qed.
Lemma dot_dot (f : nat -> nat -> F) m n : dot (fun i => dot (f i) m) n = dot (fun j => dot (fun i => f i j) n) m.
Proof. exact (@sum_sums number_sums f 0 m n 0). Qed.

(* ---------------------------------------------------------------- decays over keys and over values *)

Definition ones n : vec F n := row n (fun _ => r1).
Definition times {n} (v w : vec F n) : vec F n := row n (fun i => at_ v i * at_ w i).

(* `decay_state`: (a b^T) ∘ S. *)
Definition decay_state (S : matrix) (ab : vec F K * vec F V) : matrix :=
  cells (fun i j => at_ (fst ab) i * cell S i j * at_ (snd ab) j).

Ltac entrywise :=
  intros;
  repeat match goal with ab : (vec F K * vec F V)%type |- _ => destruct ab end;
  first [apply matrix_ext; intros | apply row_ext; intros];
  unfold decay_state, times, ones; cbn [fst snd];
  repeat first
    [ rewrite cell_cells by assumption | rewrite cell_plus by assumption | rewrite cell_zero by assumption
    | rewrite at_row by assumption
    | rewrite at_plus_values by assumption | rewrite at_zero_values by assumption ].

Definition diagonal : core.
Proof.
  refine (Core (vec F K * vec F V) (ones K, ones V)
    (fun p q => (times (fst p) (fst q), times (snd p) (snd q))) matrix decay_state _ _ _ _ _ _).
  - intros. f_equal; entrywise; ring.
  - intros [a b]. f_equal; entrywise; ring.
  - intros [a b]. f_equal; entrywise; ring.
  - entrywise. ring.
  - entrywise. ring.
  - intros a. split; entrywise; ring.
Defined.

(* `read_state`: q^T S; and k v^T. *)
Definition read_state (q : vec F K) (S : matrix) : values_sums :=
  row V (fun j => dot (fun i => at_ q i * cell S i j) K).
Definition outer (k : vec F K) (v : values_sums) : matrix := cells (fun i j => at_ k i * at_ v j).

Lemma read_state_additive q : additive (X := matrix) (read_state q).
Proof.
  split; unfold read_state; entrywise.
  - apply dot_zero. intros. rewrite cell_zero by easy. ring.
  - rewrite <- dot_plus. apply dot_ext. intros. rewrite cell_plus by easy. ring.
Qed.

Definition by_queries : reads diagonal := Reads diagonal (vec F K) values_sums read_state read_state_additive.

Definition by_keys : erasable diagonal.
Proof.
  refine (Erasable diagonal values_sums (fun v => row V (fun j => opp (at_ v j))) _
    (vec F K) read_state read_state_additive outer _).
  - entrywise. ring.
  - intros k. split; unfold outer; entrywise; ring.
Defined.

(* ---------------------------------------------------------------- the products of the code *)

(* `read_entry`: a read through decays is a read by a decayed query, decayed. *)
Theorem read_through q (S : matrix) a b :
  read_state q (decay_state S (a, b)) = times (read_state (times q a) S) b.
Proof.
  unfold read_state. entrywise. rewrite dot_times. apply dot_ext. intros i below.
  rewrite cell_cells, at_row by easy. ring.
Qed.

(* `carry`: the product of a decayed key and a decayed value. *)
Theorem outer_through k v a b : decay_state (outer k v) (a, b) = outer (times k a) (times v b).
Proof. unfold outer. entrywise. ring. Qed.

(* A read of an earlier write: the score of query and key, times the value. *)
Theorem read_outer q k v :
  read_state q (outer k v) = row V (fun j => dot (fun i => at_ q i * at_ k i) K * at_ v j).
Proof.
  unfold read_state, outer. entrywise. rewrite dot_times. apply dot_ext. intros i below.
  rewrite cell_cells by easy. ring.
Qed.

(* `tree`: ((q ∘ prefix a)^T (k ∘ suffix a)) (v ∘ suffix b) ∘ prefix b is the pair, weighed by both. *)
Theorem read_pair q k v suffix_a suffix_b prefix_a prefix_b :
  read_state q (decay_state (decay_state (outer k v) (suffix_a, suffix_b)) (prefix_a, prefix_b))
  = row V (fun j => dot (fun i => at_ q i * at_ prefix_a i * (at_ k i * at_ suffix_a i)) K
                    * (at_ v j * at_ suffix_b j) * at_ prefix_b j).
Proof.
  rewrite read_through, outer_through, read_outer. entrywise.
  do 2 f_equal. apply dot_ext. intros i below. now rewrite !at_row.
Qed.

(* `folded`: a query times the decays since the start, and a key times the inverse of those up to its step,
   make the same score as through the decays between. *)
Theorem read_folded q k v up_to inverse between :
  (forall i, i < K -> at_ up_to i * at_ inverse i = r1) ->
  read_state (times q (times up_to between)) (outer (times k inverse) v)
  = read_state q (decay_state (outer k v) (between, ones V)).
Proof.
  intros inverted. rewrite outer_through, !read_outer. entrywise.
  assert (one : forall x : F, x * r1 = x) by (intros; ring).
  rewrite one. f_equal. apply dot_ext. intros i below. unfold times. rewrite !at_row by easy.
  transitivity (at_ q i * (at_ k i * at_ between i) * (at_ up_to i * at_ inverse i)); [ring |].
  rewrite inverted by easy. apply one.
Qed.

(* `weights`, where the decay over keys is one number and there is none over values: it leaves the product. *)
Theorem read_scalar q k v c :
  read_state q (decay_state (outer k v) (row K (fun _ => c), ones V))
  = row V (fun j => dot (fun i => at_ q i * at_ k i) K * c * at_ v j).
Proof.
  rewrite outer_through, read_outer.
  assert (out : dot (fun i => at_ q i * at_ (times k (row K (fun _ => c))) i) K
    = dot (fun i => at_ q i * at_ k i) K * c).
  { rewrite dot_times. apply dot_ext. intros i below. unfold times. rewrite !at_row by easy. ring. }
  rewrite out. entrywise. ring.
Qed.

(* ---------------------------------------------------------------- gradients *)

(* `read_state(do, S.mT)` and its like: <S^T q, do> = <S, q do^T>. *)
Definition inner (v w : values_sums) : F := dot (fun j => at_ v j * at_ w j) V.
Definition all_entries (S G : matrix) : number_sums := dot (fun i => dot (fun j => cell S i j * cell G i j) V) K.

Theorem read_is_pair q (S : matrix) g : inner (read_state q S) g = all_entries S (outer q g).
Proof.
  unfold inner, all_entries, read_state. rewrite dot_dot. apply dot_ext. intros j ?.
  rewrite at_row, dot_times by easy. apply dot_ext. intros i ?. unfold outer. rewrite cell_cells by easy. ring.
Qed.

(* The gradient of a query is S do, that of a key G v and of a value G^T k: what multiplies a change of each. *)
Theorem gradient_of_query (d : vec F K) (S : matrix) g :
  all_entries S (outer d g) = dot (fun i => at_ d i * dot (fun j => cell S i j * at_ g j) V) K.
Proof.
  unfold all_entries. apply dot_ext. intros i ?. rewrite times_dot. apply dot_ext. intros j ?.
  unfold outer. rewrite cell_cells by easy. ring.
Qed.
Theorem gradient_of_key (d : vec F K) v (G : matrix) :
  all_entries (outer d v) G = dot (fun i => at_ d i * dot (fun j => cell G i j * at_ v j) V) K.
Proof.
  rewrite <- gradient_of_query. unfold all_entries. apply dot_ext. intros i ?. apply dot_ext. intros j ?. ring.
Qed.
Theorem gradient_of_value k (d : values_sums) (G : matrix) :
  all_entries (outer k d) G = dot (fun j => at_ d j * dot (fun i => cell G i j * at_ k i) K) V.
Proof.
  unfold all_entries. rewrite dot_dot. apply dot_ext. intros j ?. rewrite times_dot. apply dot_ext. intros i ?.
  unfold outer. rewrite cell_cells by easy. ring.
Qed.

(* <S, G>, and for the decays rowsum(S ∘ G) and colsum(S ∘ G): three pairings, for which all of Gradients.v and
   Straddle.v holds. *)
Definition rows (S G : matrix) : vec_sums number_sums K :=
  row K (fun i => dot (fun j => cell S i j * cell G i j) V).
Definition columns (S G : matrix) : values_sums := row V (fun j => dot (fun i => cell S i j * cell G i j) K).

Ltac sum_by_sum :=
  split; intros; try (apply row_ext; intros);
  unfold all_entries, rows, columns; cbn [plus zero number_sums carrier];
  repeat first
    [ rewrite at_row by assumption
    | rewrite at_plus by assumption
    | rewrite at_zero by assumption
    | rewrite at_plus_values by assumption
    | rewrite at_zero_values by assumption
    | rewrite <- dot_plus
    | apply dot_zero; intros
    | apply dot_ext; intros
    | rewrite cell_plus by assumption
    | rewrite cell_zero by assumption ];
  ring.

Lemma entries_left G : additive (X := matrix) (Y := number_sums) (fun S => all_entries S G).
Proof. sum_by_sum. Qed.
Lemma entries_right S : additive (X := matrix) (Y := number_sums) (fun G => all_entries S G).
Proof. sum_by_sum. Qed.
Lemma rows_left G : additive (X := matrix) (Y := vec_sums number_sums K) (fun S => rows S G).
Proof. sum_by_sum. Qed.
Lemma rows_right S : additive (X := matrix) (Y := vec_sums number_sums K) (fun G => rows S G).
Proof. sum_by_sum. Qed.
Lemma columns_left G : additive (X := matrix) (Y := values_sums) (fun S => columns S G).
Proof. sum_by_sum. Qed.
Lemma columns_right S : additive (X := matrix) (Y := values_sums) (fun G => columns S G).
Proof. sum_by_sum. Qed.

(* A decay of S and the same of G: it is its own transpose. *)
Ltac decays_either :=
  intros S [a b] G; try (apply row_ext; intros);
  unfold all_entries, rows, columns; cbn [through diagonal]; unfold decay_state; rewrite ?at_row by assumption;
  repeat (apply dot_ext; intros); rewrite !cell_cells by assumption; ring.

Definition entries_dual : dual diagonal.
Proof.
  refine (Dual diagonal diagonal number_sums (fun a => a) all_entries entries_left entries_right _).
  decays_either.
Defined.
Definition rows_dual : dual diagonal.
Proof.
  refine (Dual diagonal diagonal (vec_sums number_sums K) (fun a => a) rows rows_left rows_right _).
  decays_either.
Defined.
Definition columns_dual : dual diagonal.
Proof.
  refine (Dual diagonal diagonal values_sums (fun a => a) columns columns_left columns_right _).
  decays_either.
Defined.

(* k_t ∘ dk_t, of which the usual formula and the straddle form take sums. *)
Theorem rows_of_outer k v (G : matrix) :
  rows (outer k v) G = times k (row K (fun i => dot (fun j => cell G i j * at_ v j) V)).
Proof.
  unfold rows, outer. entrywise. rewrite times_dot. apply dot_ext. intros h below.
  rewrite cell_cells by easy. ring.
Qed.

(* ---------------------------------------------------------------- the delta rule is an erasure *)

Definition scaled (beta : F) (v : values_sums) : values_sums := row V (fun j => beta * at_ v j).
Lemma scaled_additive beta : additive (scaled beta).
Proof. split; unfold scaled; entrywise; ring. Qed.

(* With x = -beta k, y = a ∘ k and v <- beta v, the general form is the delta rule. *)
Theorem rule_is_general o a k v beta q (S : matrix) :
  one_of_reads o ->
  delta_step (C := diagonal) (Q := by_queries) (V := by_keys) o S
    (Erasing (C := diagonal) (Q := by_queries) (V := by_keys)
       (a, ones V) k v (Rule (V := by_keys) (scaled beta) (scaled_additive beta)) q)
  = delta_step (C := diagonal) (Q := by_queries) (V := by_keys) o S
    (Erasing (C := diagonal) (Q := by_queries) (V := by_keys)
       (a, ones V) k (scaled beta v)
       (General (V := by_keys) (row K (fun i => opp (beta * at_ k i))) (times k a)) q).
Proof.
  intros which.
  assert (same : decay_state S (a, ones V)
      ⊕ outer k (scaled beta (v ⊕ row V (fun j => opp (at_ (read_state k (decay_state S (a, ones V))) j))))
    = decay_state S (a, ones V) ⊕ outer (row K (fun i => opp (beta * at_ k i))) (read_state (times k a) S)
      ⊕ outer k (scaled beta v)).
  { assert (open : times (read_state (times k a) S) (ones V) = read_state (times k a) S) by (entrywise; ring).
    rewrite read_through, open. apply matrix_ext. intros i j ? ?.
    rewrite !cell_plus by easy. unfold outer. rewrite !cell_cells by easy. unfold scaled. rewrite !at_row by easy.
    rewrite at_plus_values, at_row by easy. ring. }
  destruct which as [-> | ->].
  - exact (f_equal (fun T => ([read_state q T], T)) same).
  - exact (f_equal (fun T => ([read_state q S], T)) same).
Qed.

End Matrices.

(* ---------------------------------------------------------------- so the forms are one on K x V numbers *)

Corollary chunk_form_of_matrices (F : ring) K V o (steps : nat -> step (by_queries F K V)) how S T size :
  size > 0 -> in_blocks (chunk o steps how) S T size = walk o S (slice steps 0 T).
Proof. apply chunk_form. Qed.

Corollary delta_form_of_matrices
  (F : ring) K V o (steps : nat -> erasing (by_queries F K V) (by_keys F K V)) how S T size :
  one_of_reads o -> size > 0 ->
  in_blocks (delta_chunk o steps how) S T size = delta_walk o S (slice steps 0 T).
Proof. intros. now apply delta_chunk_form. Qed.
