// Text in, text out: pass pipelines, kernels for GPUs, and which options pipelines have.
#include "Session.h"

#include "aligned/Conversion/AlignedToNVVM/Program.h"
#include "aligned/Pipelines/Pipelines.h"

#include <cstring>

using namespace mlir;
using namespace aligned;

static char *transform(const char *source, const char *pipeline, bool withPlaces) {
  Session session;
  OwningOpRef<ModuleOp> module = session.parse(source);
  if (!module || failed(session.run(*module, pipeline)))
    return session.fail();
  std::string text;
  llvm::raw_string_ostream os(text);
  module->print(os, OpPrintingFlags().enableDebugInfo(withPlaces));
  return strdup(text.c_str());
}

char *aligned_transform(const char *source, const char *pipeline) { return transform(source, pipeline, false); }
char *aligned_transform_with_places(const char *source, const char *pipeline) { return transform(source, pipeline, true); }
void aligned_text_free(char *text) { free(text); }

int aligned_compile_kernels(const char *source, const char *options, char **ptx, char **sidecar) {
  Session session;
  OwningOpRef<ModuleOp> module = session.parse(source);
  auto compile = [&]() -> FailureOr<Program> {
    session.context.enableMultithreading(); // kernels are compiled side by side
    LogicalResult done = session.run(*module, (llvm::Twine("aligned-pipeline{") + (options ? options : "") + " target=nvptx}").str());
    session.context.disableMultithreading();
    return succeeded(done) ? programOf(*module) : FailureOr<Program>();
  };
  FailureOr<Program> program = module ? compile() : FailureOr<Program>();
  if (failed(program)) {
    session.fail();
    return -1;
  }
  *ptx = strdup(program->ptx.c_str());
  *sidecar = strdup(program->sidecar.c_str());
  return 0;
}

const char *aligned_chip_for(int32_t capability) { return chipFor(capability).data(); }

//===----------------------------------------------------------------------===//
// Options
//===----------------------------------------------------------------------===//

namespace {

template <typename T> aligned_option describe(const PipelineOptions::Option<T> &option) {
  constexpr aligned_option_kind kind = std::is_same_v<T, bool>       ? ALIGNED_OPTION_FLAG
                                       : std::is_same_v<T, int64_t>  ? ALIGNED_OPTION_INTEGER
                                       : std::is_same_v<T, uint64_t> ? ALIGNED_OPTION_COUNT
                                       : std::is_same_v<T, double>   ? ALIGNED_OPTION_NUMBER
                                                                     : ALIGNED_OPTION_TEXT;
  static_assert(kind != ALIGNED_OPTION_TEXT || std::is_same_v<T, std::string>);
  return {option.ArgStr.data(), option.HelpStr.data(), kind};
}
aligned_option describe(const PipelineOptions::ListOption<double> &option) { return {option.ArgStr.data(), option.HelpStr.data(), ALIGNED_OPTION_NUMBERS}; }

} // namespace

int32_t aligned_pipeline_options(const aligned_option **options) {
  static const std::vector<aligned_option> all = [] {
    PipelineOptions of; // names and descriptions are literals
    auto list = [](auto &...option) { return std::vector<aligned_option>{describe(option)...}; };
    return list(of.policy, of.tolerance, of.format, of.budget, of.budgetLayer, of.denseBelow, of.denseUpTo, of.costs, of.isa, of.raise, of.probe, of.certify, of.profile, of.target,
                of.chip, of.ptx, of.to);
  }();
  *options = all.data();
  return all.size();
}
