// torch's attention on the CPU, by a worker process (torch_worker.py) that is asked a line at a time and answers with a line of JSON.
//
// The worker keeps the time of its turns itself, so that nothing of the asking is in it. On one thread it runs where the asker does, and finds the caches as the others
// do. One that ends, hangs or talks nonsense is told of once and answers nothing from then on.
#ifndef ALIGNED_BENCHMARKS_CPU_TORCH_H
#define ALIGNED_BENCHMARKS_CPU_TORCH_H

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace aligned {

class Torch {
public:
  struct Contestant {
    std::string name;
    double bytes; ///< of its cache, beside one of 16 bits
    std::string note;
  };

  /// Over the last step of the capture in `folder`. `seconds`: what an answer may take. Prints what is wrong and returns null where `python` cannot be started.
  static std::shared_ptr<Torch> start(const std::string &python, const std::string &folder, int copies, int threads, int seconds);
  Torch(int process, int socket, int threads, int seconds) : process(process), socket(socket), threads(threads), seconds(seconds) {}
  Torch(const Torch &) = delete;
  ~Torch() { end(); }

  std::vector<Contestant> contestants();
  bool lost() const { return socket < 0; }
  /// Seconds of a turn; NaN without an answer.
  double time(size_t contestant);
  /// [queryHeads, valueDim]; nothing without an answer.
  std::vector<double> output(size_t contestant, int64_t layer);

private:
  template <typename T> std::optional<T> ask(const std::string &request);
  std::nullopt_t lose(const std::string &request, const std::string &got);
  int end();

  int process, socket; ///< socket: -1 once the worker is given up
  const int threads, seconds;
};

} // namespace aligned

#endif // ALIGNED_BENCHMARKS_CPU_TORCH_H
