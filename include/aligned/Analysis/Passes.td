// What the analysis of precision tells people, tools and later passes.
#ifndef ALIGNED_ANALYSIS_PASSES_TD
#define ALIGNED_ANALYSIS_PASSES_TD

include "mlir/Pass/PassBase.td"

def AlignedAnalyzePrecision : Pass<"aligned-analyze-precision", "::mlir::ModuleOp"> {
  let summary = "say which bits of which operands can't matter";
  let description = [{
    Precision alignment for any sum (P6). Ranges of values go forward from `aligned.range` of arguments, constants and types; slack, how far a value
    may be off, goes backward from `aligned.tolerance` of results, by default half a unit in the last place of the largest value. Rewrites nothing.

    On each addition, reduction, contraction and attention, a remark tells of operands whose lower bits are wasted:

    ```
    remark: the lower 7 bits of operand #1 lie below the alignment of operand #0
    note: operand #1 is in [-8, 7], with bits down to 2^-7 in its largest values; operand #0 is in [1024, 2047], a multiple of 2^0
    ```

    Bits are counted in the largest values of an operand; smaller ones have as many or fewer above the alignment.

    With `report`, one JSON document takes the remarks' place, an object whose `ops` lists every op on floats with `op`, `function`, `location`, `operands` and `results`.
    Operands and results have `lower`, `upper` and `nonzero` (null: no end), `inf`, `nan`, `held` (values are multiples of 2^held; null: all are 0), and
    `slack` (null: nobody asks); operands of sums also `wasted_bits` from 2^`finest` up and what these lie `below`.
  }];
  let options = [Option<"report", "report", "std::string", "", "json: one document on standard output instead of remarks">];
}

def AlignedAssignPolicies : Pass<"aligned-assign-policies", "::mlir::ModuleOp"> {
  let summary = "give attention the policy that the tolerance of results asks for";
  let description = [{
    In functions with an `aligned.tolerance` on some result, each `aligned.attention` without policies of its own gets a budget from the slack of its result
    (P6), an absolute error d that every channel may have. A tolerance is relative to a usual row of V (P2), which is no longer than m * sqrt(value_dim)
    where values are at most m. So

        tolerance = d / (m * sqrt(value_dim))          |error| <= ||error|| = tolerance ||usual row|| <= tolerance * m * sqrt(value_dim) = d

    for an error that is as large as the policy aims at.

    `exact` where that is below 2^-13, about what storage in planes errs, with a remark; no more than 1/4. Where nothing is known of V or the result may not be
    off at all, a remark says so and the op stays as it is.
  }];
  let dependentDialects = ["::aligned::AlignedDialect"];
}

#endif // ALIGNED_ANALYSIS_PASSES_TD
