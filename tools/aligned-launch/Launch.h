// A captured cache through an emitted program: steps, errors, bits read and times.
#ifndef ALIGNED_TOOLS_ALIGNED_LAUNCH_LAUNCH_H
#define ALIGNED_TOOLS_ALIGNED_LAUNCH_LAUNCH_H

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace aligned {

struct LaunchOptions {
  std::string program, capture;        ///< folders
  std::optional<int64_t> layer, steps; ///< all if not said
  std::optional<int64_t> site;         ///< by number; else the first that fits
  std::optional<double> tolerance;
  int repeat = 10;
  int32_t splits = 0; ///< 0: chosen for the device
  bool graph = false;
};

/// What was measured of a layer, or of all.
struct LayerReport {
  int64_t layer = 0, steps = 0, tokens = 0; ///< tokens: of the last step
  int64_t keyBits = 0, keyValues = 0, valueBits = 0, valueValues = 0;
  double bytesFraction = 0;           ///< of a dense kernel's bytes
  double errorMean = 0, errorMax = 0; ///< relative L2 of heads' outputs against float64
  int64_t heads = 0, violations = 0;  ///< query heads in all steps, and those whose error exceeds their bound or the tolerance
  double boundRatioMax = NAN;         ///< largest error of a channel / bound, of a head
  double stepMicroseconds = NAN, graphMicroseconds = NAN;
};

struct LaunchReport {
  std::string device;
  int capability = 0;
  int32_t site = 0;
  bool certified = false, uploaded = false; ///< uploaded: caches are appended to on the host, since the program can't
  double tolerance = 0;                     ///< 0: only the certificate counts
  std::vector<LayerReport> layers;
  LayerReport all;

  bool ok() const { return all.violations == 0; }
};

/// Prints what is wrong and returns nothing.
std::optional<LaunchReport> launchCapture(const LaunchOptions &options);

void printReport(const LaunchReport &report);
void printJson(const LaunchReport &report);

} // namespace aligned

#endif // ALIGNED_TOOLS_ALIGNED_LAUNCH_LAUNCH_H
