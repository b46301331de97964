(* The network of the associative scan gives all prefixes, for every length.

   Models kernels/forms.py: `associative_scan`, slice by slice. Only associativity is used. *)

From Mixerzoo Require Import Recurrence.

Section Scan.
Context {E : Type}.
Variable op : E -> E -> E.
Hypothesis assoc : forall x y z, op (op x y) z = op x (op y z).

(* What it should give: x0, x0 x1, x0 x1 x2, ... *)
Fixpoint prefixes_from (x : E) (l : list E) : list E :=
  match l with
  | [] => []
  | y :: l => op x y :: prefixes_from (op x y) l
  end.
Definition prefixes (l : list E) : list E :=
  match l with
  | [] => []
  | x :: l => x :: prefixes_from x l
  end.

(* ---------------------------------------------------------------- the network *)

Fixpoint every_other (l : list E) : list E :=  (* l[::2] *)
  match l with
  | x :: _ :: l => x :: every_other l
  | l => l
  end.
Fixpoint zip (l m : list E) : list E :=        (* the operator, element by element *)
  match l, m with
  | x :: l, y :: m => op x y :: zip l m
  | _, _ => []
  end.
Fixpoint alternate (l m : list E) : list E :=  (* stacked and flattened *)
  match l, m with
  | x :: l, y :: m => x :: y :: alternate l m
  | _, _ => []
  end.

Fixpoint associative_scan (fuel : nat) (x : list E) : list E :=
  match fuel with
  | 0 => x
  | S fuel =>
      let n := length x in
      if n <=? 1 then x else
      let m := n / 2 in
      let odd := associative_scan fuel
        (zip (every_other (firstn (2 * m) x)) (every_other (skipn 1 (firstn (2 * m) x)))) in
      let even := firstn 1 x ++
        (if 2 <? n then zip (firstn ((n - 1) / 2) odd) (every_other (skipn 2 x)) else []) in
      let both := alternate (firstn m even) odd in
      if n =? 2 * m then both else both ++ skipn m even
  end.

(* ---------------------------------------------------------------- why it is right *)

Fixpoint pairs (l : list E) : list E :=
  match l with
  | x :: y :: l => op x y :: pairs l
  | _ => []
  end.

(* Two steps at a time. *)
Lemma two_steps (P : list E -> Prop) :
  P [] -> (forall x, P [x]) -> (forall x y l, P l -> P (x :: y :: l)) -> forall l, P l.
Proof.
  intros none one more l. enough (P l /\ forall x, P (x :: l)) by easy.
  induction l as [|y l [IH IHx]]; [easy|]. split; [apply IHx|]. intros x. now apply more.
Qed.

Lemma half_of_two_more n : S (S n) / 2 = S (n / 2).
Proof. replace (S (S n)) with (n + 1 * 2) by lia. rewrite Nat.div_add by lia. lia. Qed.

Lemma zipped_halves l :
  zip (every_other (firstn (2 * (length l / 2)) l)) (every_other (skipn 1 (firstn (2 * (length l / 2)) l)))
  = pairs l.
Proof.
  induction l as [|x|x y l IH] using two_steps; [reflexivity..|].
  change (length (x :: y :: l)) with (S (S (length l))). rewrite half_of_two_more.
  replace (2 * S (length l / 2)) with (S (S (2 * (length l / 2)))) by lia.
  change (firstn (S (S (2 * (length l / 2)))) (x :: y :: l))
    with (x :: y :: firstn (2 * (length l / 2)) l).
  revert IH. generalize (firstn (2 * (length l / 2)) l). intros k IH.
  simpl. rewrite <- IH. destruct k as [|z k]; reflexivity.
Qed.

Lemma length_pairs l : length (pairs l) = length l / 2.
Proof.
  induction l as [|x|x y l IH] using two_steps; [reflexivity..|].
  simpl length. now rewrite IH, half_of_two_more.
Qed.

(* After the first pair: prefixes p0 p1 .. of the pairs that follow x; between them, those that end in a pair's
   first element. *)
Lemma interleaved_from l : forall x,
  let odd := prefixes_from x (pairs l) in
  let even := zip (firstn ((length l + 1) / 2) (x :: odd)) (every_other l) in
  alternate (firstn (length l / 2) even) odd ++ skipn (length l / 2) even = prefixes_from x l.
Proof.
  induction l as [|y|y z l IH] using two_steps; intros x; [reflexivity..|].
  specialize (IH (op x (op y z))). cbv zeta in *.
  change (pairs (y :: z :: l)) with (op y z :: pairs l).
  change (length (y :: z :: l)) with (S (S (length l))).
  change (every_other (y :: z :: l)) with (y :: every_other l).
  change (S (S (length l)) + 1) with (S (S (length l + 1))). rewrite !half_of_two_more.
  change (prefixes_from x (op y z :: pairs l))
    with (op x (op y z) :: prefixes_from (op x (op y z)) (pairs l)).
  change (prefixes_from x (y :: z :: l)) with (op x y :: op (op x y) z :: prefixes_from (op (op x y) z) l).
  rewrite (assoc x y z). rewrite <- IH. reflexivity.
Qed.

Theorem scan_is_prefixes fuel : forall x, length x <= fuel -> associative_scan fuel x = prefixes x.
Proof.
  induction fuel as [|fuel IH]; intros x enough.
  - now destruct x; [|simpl in enough; lia].
  - cbn [associative_scan]. destruct (Nat.leb_spec (length x) 1) as [short|long].
    + now destruct x as [|y [|z x]]; [..|simpl in short; lia].
    + rewrite zipped_halves, IH.
      2: { rewrite length_pairs. pose proof (Nat.div_lt (length x) 2). lia. }
      destruct x as [|y [|z x]]; [simpl in long; lia..|]. clear IH enough long.
      pose proof (interleaved_from x (op y z)) as same. cbv zeta in same.
      change (length (y :: z :: x)) with (S (S (length x))).
      rewrite half_of_two_more. simpl pairs. simpl prefixes.
      set (odd := prefixes_from (op y z) (pairs x)) in *.
      change (skipn 2 (y :: z :: x)) with x.
      replace (S (S (length x)) - 1) with (length x + 1) by lia.
      change (firstn 1 (y :: z :: x)) with [y].
      assert (even : (if 2 <? S (S (length x))
          then zip (firstn ((length x + 1) / 2) (op y z :: odd)) (every_other x) else [])
        = zip (firstn ((length x + 1) / 2) (op y z :: odd)) (every_other x)).
      { destruct x; reflexivity. }
      rewrite even. clear even. set (even := zip _ _) in *.
      change ([y] ++ even) with (y :: even). rewrite firstn_cons, skipn_cons. cbn [alternate].
      destruct (Nat.eqb_spec (S (S (length x))) (2 * S (length x / 2))) as [no_tail|tail].
      * rewrite <- same. replace (skipn (length x / 2) even) with (@nil E); [now rewrite app_nil_r|].
        symmetry. apply skipn_all2. unfold even. clear - no_tail.
        assert (short : forall l m : list E, length (zip l m) <= length l).
        { induction l as [|? l IHl]; intros [|? m]; simpl; try lia. specialize (IHl m). lia. }
        etransitivity; [apply short|]. rewrite firstn_length.
        assert ((length x + 1) / 2 <= length x / 2); [|lia].
        replace (length x + 1) with (1 + (length x / 2) * 2) by lia. rewrite Nat.div_add by lia. simpl. lia.
      * rewrite <- !app_comm_cons. now rewrite same.
Qed.

End Scan.

(* `scanned_states`: the scan of (one, S) and all steps gives the states before, between and after them. *)
Section States.
Context {C : core}.

Fixpoint states (S : state C) (l : list (event C)) : list (state C) :=
  S :: match l with
       | [] => []
       | e :: l => states (advance S e) l
       end.

Theorem scanned_states S l n :
  length l <= n -> map snd (associative_scan join (n + 1) ((one, S) :: l)) = states S l.
Proof.
  intros enough. rewrite scan_is_prefixes; [|intros; apply join_assoc|rewrite Nat.add_1_r; now apply le_n_S].
  clear enough. simpl. generalize (one : transition C). revert S.
  induction l as [|e l IH]; intros S a; simpl; [reflexivity|]. f_equal. apply IH.
Qed.

End States.
