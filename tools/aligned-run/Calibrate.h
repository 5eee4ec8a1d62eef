// What a model's inputs were seen to be, written down in the model.
#ifndef ALIGNED_TOOLS_ALIGNED_RUN_CALIBRATE_H
#define ALIGNED_TOOLS_ALIGNED_RUN_CALIBRATE_H

#include "OutputFile.h"
#include "Run.h"

namespace aligned {

/// Writes the model with `aligned.range` on each float argument of its function, what arg0, arg1, ... of all archives span (P6), and `aligned.key_offset` on
/// each that becomes a cache of keys, their mean over all tokens (S2). Prints what is wrong, at its place in the model where it has one.
bool calibrate(const std::string &model, const std::vector<std::string> &archives, OutputFile &file);

} // namespace aligned

#endif // ALIGNED_TOOLS_ALIGNED_RUN_CALIBRATE_H
