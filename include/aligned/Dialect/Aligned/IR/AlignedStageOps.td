// The stages of a decode step over fixed planes (P2): what is computed of one row, or of splits of it.
#ifndef ALIGNED_STAGE_OPS_TD
#define ALIGNED_STAGE_OPS_TD

include "aligned/Dialect/Aligned/IR/AlignedAttrs.td"
include "mlir/Interfaces/DestinationStyleOpInterface.td"
include "mlir/Interfaces/SideEffectInterfaces.td"
include "mlir/Interfaces/TilingInterface.td"

def Aligned_Array : AnyTypeOf<[AnyRankedTensor, AnyMemRef], "tensor or memref">;
def Aligned_StateArray : AnyTypeOf<[TensorRankOf<[F32], [4]>, MemRefRankOf<[F32], [4]>], "f32 tensor or memref of rank 4">;
def Aligned_RowArray : AnyTypeOf<[TensorRankOf<[F32], [3]>, MemRefRankOf<[F32], [3]>], "f32 tensor or memref of rank 3">;

// A stage writes its results to `outs`: on tensors it returns them, on buffers it returns nothing.
class Aligned_StageOp<string opMnemonic, list<Trait> traits = []>
    : Op<Aligned_Dialect, opMnemonic,
         !listconcat([DestinationStyleOpInterface, AttrSizedOperandSegments, DeclareOpInterfaceMethods<MemoryEffectsOpInterface>], traits)> {
  let results = (outs Variadic<AnyRankedTensor>:$results);
  let hasVerifier = 1;
  code stageDeclaration = [{
    ::mlir::MutableOperandRange getDpsInitsMutable() { return getOutsMutable(); }
  }];
  let extraClassDeclaration = stageDeclaration;
}

// A stage over splits of tokens, which upstream's tiling cuts into one split each.
class Aligned_SplitStageOp<string opMnemonic>
    : Aligned_StageOp<opMnemonic, [DeclareOpInterfaceMethods<TilingInterface, ["getLoopIteratorTypes", "getIterationDomain", "getTiledImplementation", "getResultTilePosition"]>]> {
  let extraClassDeclaration = stageDeclaration # [{
    /// An out that has an entry for each split.
    ::mlir::Value getSplitsOut();
  }];
}

def Aligned_PrepareOp : Aligned_StageOp<"prepare"> {
  let summary = "what a decode step knows of a row before it reads any of it";
  let description = [{
    A row is a kv head of one batch entry, `row = batch * kv_heads + head`, with the query rows that share it: the query heads of its group times the queries.

    - `digits` [digits, query rows, key_dim], i8: the query rows as integers. With R the rotation of S2, `w = scale log2(e) (q R)` and `w_c ~ step * v_c`,
      `v = sum_i digits[i] 256^(digits - 1 - i)`; 2 digits where a policy reads to a tolerance, 3 where it is `exact`.
    - `facts` [query rows + 1, 8], f32: of each query row the unit of its integers, the sum of them, |q'|, |q'|_1, what P5 takes off its thresholds, NaN where the query is not
      finite, and log2 of the tokens that it sees, less that of the square of `tolerance_factor`; behind them, of the row, log2 A and A (M2), the unit of V's scales, K's largest scale code and V's floor (M3).
    - `mean` [value_dim], f32: what a row of V stands for of which nothing is read (M1).

    Constraints: A1, A2, A4, A10, A11, A13, A16, P1 and P2 of `aligned.decode_attention`, whose caches have fixed planes and whose heads and queries are static.
  }];
  let arguments = (ins Aligned_Array:$query, Aligned_Array:$key, Aligned_Array:$value, F32:$scale, Index:$row, Optional<Index>:$dynamic_window, Optional<Index>:$dynamic_sinks,
                       Optional<Index>:$later, Optional<F32>:$tolerance_factor,
                       Variadic<Aligned_Array>:$outs, Aligned_PolicyArrayAttr:$policies, OptionalAttr<Aligned_MaskAttr>:$mask);
  let assemblyFormat = [{
    $query `,` $key `,` $value `scale` $scale `row` $row (`mask` custom<Mask>($mask, $dynamic_window, $dynamic_sinks)^)? (`later` $later^)? custom<Policies>($policies) (`tolerance_factor` $tolerance_factor^)?
    `outs` `(` $outs `:` type($outs) `)` attr-dict `:` type($query) `,` type($key) `,` type($value) (`->` type($results)^)?
  }];
}

def Aligned_ScanOp : Aligned_SplitStageOp<"scan"> {
  let summary = "coarse scores of splits, their maxima, and what they add up to";
  let description = [{
    Reads the first plane of K of all tokens of splits, tiles that no query sees left out. A split is a stretch of 32 tiles of 64 tokens, the last one of a row may be shorter;
    `split` is the number of the first one here, and there are as many as `part` has entries. Splits need nothing of one another: TilingInterface, with splits as its domain.

    - `scores` [tiles, query rows, 64], f32: `x = scale log2(e) q.k'`, k' what the first plane says of k (S4); masked (A11) and -1e38 where a query sees nothing. Of
      tokens that are kept aside (S7), and of those whose row of V is, the score as well as it can be known.
    - `tops` [tiles, query rows, 16], f32: whose largest is the largest `x + max(log2 v, log2 A)` of the tile, in octaves of scale codes.
    - `part` [splits, 2, query rows], f32: a reference M near the largest score of the split, and the sum of `2^(x - M)`.

    Constraints: those of `aligned.prepare`, and A12 and A15.
  }];
  let arguments = (ins Aligned_Array:$query, Aligned_Array:$key, Aligned_Array:$value, F32:$scale, Index:$row, Index:$split, Optional<F32>:$dynamic_softcap,
                       Optional<Index>:$dynamic_window, Optional<Index>:$dynamic_sinks, Optional<Index>:$later, Optional<Aligned_AttnMask>:$attn_mask, Aligned_Array:$digits, Aligned_Array:$facts, Variadic<Aligned_Array>:$outs, Aligned_PolicyArrayAttr:$policies,
                       OptionalAttr<F64Attr>:$softcap, OptionalAttr<Aligned_MaskAttr>:$mask);
  let assemblyFormat = [{
    $query `,` $key `,` $value `,` $digits `,` $facts `scale` $scale `row` $row `split` $split (`softcap` custom<Softcap>($softcap, $dynamic_softcap)^)?
    (`mask` custom<Mask>($mask, $dynamic_window, $dynamic_sinks)^)? (`later` $later^)? (`attn_mask` $attn_mask^ `:` type($attn_mask))? custom<Policies>($policies) `outs` `(` $outs `:` type($outs) `)` attr-dict
    `:` type($query) `,` type($key) `,` type($value) `,` type($digits) `,` type($facts) (`->` type($results)^)?
  }];
}

def Aligned_AttendOp : Aligned_SplitStageOp<"attend"> {
  let summary = "softmax states of splits, from the tokens whose addend reaches above the thresholds";
  let description = [{
    (P2, P3, P5) From the `parts` of all splits the row's sum is known, and with it the thresholds: with Z the sum of coarse `2^(x - M)`, times what P5 takes off, A the usual scale
    of a row of V, k and v the scales of a token, `tau = tolerance / sqrt(tokens seen)` and `sigma_b = k |q'| 2^-b / sqrt(3)`,

        K is read on to the fewest bits b, of whole planes, with    2^(x - M) / Z (1 + v / A) misled(sigma_b) <= 6 tau        for all query rows
        V is not read where    r = 2^(x - M) / Z v / A <= tau       to b bits where r <= 2^b tau                              the most of all query rows

    where x is as known: coarse for K, refined for V. `misled(s)^2 = e^(2 s^2) - 2 e^(s^2 / 2) + 1`. Kernels may read more, never less. Limits (P7) have the last word. The state
    is that of `aligned.decode_attention` over a split's tokens, its maximum the reference M of all splits: `acc` [splits, group, queries, value_dim], `max` and `sum`
    [splits, group, queries] and, where it is asked for, the certificate. `parts` are those of all splits of the row, `scores` and `tops` those of the splits from `split` on,
    as many as `acc` has entries; TilingInterface as `aligned.scan` has it.

    Constraints: those of `aligned.scan`.
  }];
  let arguments = (ins Aligned_Array:$query, Aligned_Array:$key, Aligned_Array:$value, Index:$row, Index:$split, Optional<F32>:$dynamic_softcap,
                       Optional<Index>:$dynamic_window, Optional<Index>:$dynamic_sinks, Optional<Index>:$later, Optional<Aligned_AttnMask>:$attn_mask, Optional<Aligned_SinkLogits>:$sink_logits, Aligned_Array:$digits, Aligned_Array:$facts, Aligned_Array:$mean, Aligned_Array:$scores, Aligned_Array:$tops, Aligned_Array:$parts, Variadic<Aligned_Array>:$outs,
                       Aligned_PolicyArrayAttr:$policies, UnitAttr:$masked_zero, DefaultValuedAttr<I32Attr, "0">:$attention_id, OptionalAttr<F64Attr>:$softcap,
                       OptionalAttr<Aligned_MaskAttr>:$mask);
  let assemblyFormat = [{
    $query `,` $key `,` $value `,` $digits `,` $facts `,` $mean `,` $scores `,` $tops `,` $parts `row` $row `split` $split (`softcap` custom<Softcap>($softcap, $dynamic_softcap)^)?
    (`mask` custom<Mask>($mask, $dynamic_window, $dynamic_sinks)^)? (`later` $later^)? (`attn_mask` $attn_mask^ `:` type($attn_mask))? (`sink_logits` $sink_logits^ `:` type($sink_logits))?
    custom<Policies>($policies) (`masked_zero` $masked_zero^)? `outs` `(` $outs `:` type($outs) `)` attr-dict
    `:` type($query) `,` type($key) `,` type($value) `,` type($digits) `,` type($facts) `,` type($mean) `,` type($scores) `,` type($tops) `,` type($parts)
    (`->` type($results)^)?
  }];
}

#endif // ALIGNED_STAGE_OPS_TD
