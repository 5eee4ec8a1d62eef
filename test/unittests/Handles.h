// What tests hold of the runtime, freed with who holds it.
#ifndef ALIGNED_TEST_UNITTESTS_HANDLES_H
#define ALIGNED_TEST_UNITTESTS_HANDLES_H

#include "aligned/Runtime/Cuda.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

namespace aligned::test {

struct Destroy {
  void operator()(aligned_cache *cache) const { aligned_cache_destroy(cache); }
  void operator()(aligned_program *program) const { aligned_program_destroy(program); }
  void operator()(aligned_graph *graph) const { aligned_graph_destroy(graph); }
};
using CachePtr = std::unique_ptr<aligned_cache, Destroy>;
using ProgramPtr = std::unique_ptr<aligned_program, Destroy>;
using GraphPtr = std::unique_ptr<aligned_graph, Destroy>;

/// Memory on the device, filled.
class DeviceData {
public:
  explicit DeviceData(int64_t bytes) : memory(aligned_cuda_allocate(bytes)) { EXPECT_NE(memory, nullptr) << aligned_last_error(); }
  DeviceData(const void *data, int64_t bytes) : DeviceData(bytes) { EXPECT_EQ(aligned_cuda_copy_to_device(memory, data, bytes), 0) << aligned_last_error(); }
  explicit DeviceData(const std::vector<char> &data) : DeviceData(data.data(), int64_t(data.size())) {}
  ~DeviceData() { aligned_cuda_free(memory); }
  DeviceData(const DeviceData &) = delete;
  template <typename T> std::vector<T> get(int64_t count) const {
    std::vector<T> values(count);
    EXPECT_EQ(aligned_cuda_copy_to_host(values.data(), memory, count * int64_t(sizeof(T))), 0) << aligned_last_error();
    return values;
  }
  void *const memory;
};

/// Arrays on the device, which live as long as this.
class DeviceArrays {
public:
  template <typename T = void> T *add(const void *data, int64_t bytes) { return keep<T>(std::make_unique<DeviceData>(data, bytes)); }
  template <typename T = void> T *add(const std::vector<char> &data) { return keep<T>(std::make_unique<DeviceData>(data)); }
  template <typename T = void> T *add(int64_t bytes) { return keep<T>(std::make_unique<DeviceData>(bytes)); }

private:
  template <typename T> T *keep(std::unique_ptr<DeviceData> array) {
    arrays.push_back(std::move(array));
    return static_cast<T *>(arrays.back()->memory);
  }
  std::vector<std::unique_ptr<DeviceData>> arrays;
};

} // namespace aligned::test

#endif // ALIGNED_TEST_UNITTESTS_HANDLES_H
