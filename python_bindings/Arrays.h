// What all parts of the native module share: its exception, dtypes, and arrays that come in and go out.
//
// Arrays come in by DLPack or the buffer protocol and are never copied here; results leave as NumPy arrays that free what they hold. Those on a GPU are the caller's, results
// included.
#ifndef ALIGNED_PYTHON_ARRAYS_H
#define ALIGNED_PYTHON_ARRAYS_H

#include "aligned/JIT/Module.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace nb = nanobind;

/// alignedkv.Error
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// What the C interface said last, as that.
[[noreturn]] void throwLast();

//===----------------------------------------------------------------------===//
// Types
//===----------------------------------------------------------------------===//

struct Dtype {
  aligned_dtype value;
  const char *name;
  nb::dlpack::dtype_code code;
  uint8_t bits;
  nb::dlpack::dtype dlpack() const { return {static_cast<uint8_t>(code), bits, 1}; }
};

const Dtype &dtypeOf(aligned_dtype value);

constexpr const char *elementNames[] = {"float16", "bfloat16", "float32"}; // by aligned_element
constexpr aligned_dtype elementDtypes[] = {ALIGNED_DTYPE_F16, ALIGNED_DTYPE_BF16, ALIGNED_DTYPE_F32};

std::string shapeText(int32_t rank, const int64_t *shape);
/// fixed<4,4,8> key, resident = 2
std::string formatText(const aligned_format &format, int64_t resident);
std::string typeText(const aligned_type &type);

//===----------------------------------------------------------------------===//
// Arrays
//===----------------------------------------------------------------------===//

/// A view of the buffer protocol, or none.
struct Buffer : Py_buffer {
  Buffer() : Py_buffer() {}
  Buffer(Buffer &&other) : Py_buffer(other) { other.obj = nullptr; }
  ~Buffer() { PyBuffer_Release(this); }
};

/// An argument, and what keeps its memory alive.
struct Input {
  Buffer buffer;
  nb::ndarray<nb::ro> owner;
  aligned_array array = {};
  bool isOnDevice = false; // of CUDA
};

/// `object` as an array of this dtype and rank, or an Error about `what`. It is in memory of the CPU, or `orOnDevice` in that of the device of CUDA that the thread uses.
Input readArray(nb::handle object, const Dtype &dtype, int32_t rank, const std::string &what, bool orOnDevice = false);
/// Whether an array of such a place, as DLPack numbers them, lies on that device. An Error where it lies on another one of CUDA.
bool isOnDevice(int deviceType, int deviceId, const std::string &what);

/// Any array in memory of the CPU as a NumPy array over the same memory, and the name of its dtype; bfloat16 as its bits.
nb::tuple viewAsNumpy(nb::handle object, const std::string &what);

/// A NumPy array over a result, which it frees.
nb::object takeArray(const aligned_type &type, const aligned_array &array);

#endif
