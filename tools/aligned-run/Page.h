// The report of a captured cache as one HTML page that needs nothing else: what was measured, what others store, and which bits one step read.
#ifndef ALIGNED_TOOLS_ALIGNED_RUN_PAGE_H
#define ALIGNED_TOOLS_ALIGNED_RUN_PAGE_H

#include "Run.h"

#include "llvm/Support/raw_ostream.h"

namespace aligned {

/// The bits that one policy read of one kv head in one step, planes only.
struct StepBits {
  int64_t channels = 0;                ///< 1: K is read token by token; else [tiles of 64 tokens][channels] of it
  std::vector<int> keyBits, valueBits; ///< [tokens], or as said
};

/// What a kernel says of the error of one head's output, beside the error.
struct Certified {
  double bound, error;                     ///< in the largest channel; P4: never exceeded
  double estimate = 0, relativeError = 0;  ///< L2; an estimate of 0 is none

  bool holds() const { return error <= bound; }
};

/// A policy's row in the table, and its pictures.
struct PolicyPage {
  DecodeReport report;
  std::optional<StepBits> bits;        ///< where the caches are packed
  std::vector<Certified> certificates; ///< of every layer, query head and step
};

struct DecodePage {
  std::string folder, model, text;     ///< the last two as meta.json has them, or empty
  std::string element;                 ///< of the captured values
  int64_t elementBits = 16;
  int64_t layers = 0, kvHeads = 0, group = 0, keyDim = 0, valueDim = 0, steps = 0, tokens = 0; ///< `steps` that were run, `tokens` that the last of them saw
  std::vector<PolicyPage> policies;
  std::vector<DecodeReport> alternatives; ///< computed by the reference, without a time

  int64_t layer = 0, head = 0, step = 0, stepTokens = 0; ///< of the pictures
  std::vector<double> probabilities;   ///< of each token: the largest among the query rows
};

void writePage(const DecodePage &page, llvm::raw_ostream &os);

} // namespace aligned

#endif // ALIGNED_TOOLS_ALIGNED_RUN_PAGE_H
