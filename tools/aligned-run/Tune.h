// What a search for a budget finds, as a file and as figures.
#ifndef ALIGNED_TOOLS_ALIGNED_RUN_TUNE_H
#define ALIGNED_TOOLS_ALIGNED_RUN_TUNE_H

#include "Run.h"

#include "llvm/Support/raw_ostream.h"

namespace aligned {

/// What tolerances were measured to cost, over every layer, head and step.
struct TunedFigures {
  double errorMean, errorMax, keyBits, valueBits, bytesFraction;
};

struct Tuned {
  struct Layer {
    int64_t number; ///< of the model
    std::vector<std::pair<double, double>> heads; ///< tolerances of K and V
  };

  double target;
  double tolerance; ///< of layers that were not captured
  std::vector<Layer> layers; ///< none where one tolerance for all is best
  TunedFigures figures;
  std::optional<TunedFigures> uniform; ///< of `tolerance` in all layers, the largest one found that keeps within the target
};

/// Prints what is wrong, or that the target can't be met, and returns nothing.
std::optional<Tuned> tune(const std::string &folder, const RunOptions &options, double target);

void writeBudget(const Tuned &tuned, const std::string &folder, llvm::raw_ostream &os);
void printTuned(const Tuned &tuned, const std::string &path);
llvm::json::Object tunedJson(const std::optional<Tuned> &tuned, bool ok);

} // namespace aligned

#endif // ALIGNED_TOOLS_ALIGNED_RUN_TUNE_H
