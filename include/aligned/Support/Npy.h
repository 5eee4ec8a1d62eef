// NumPy's array files: .npy in versions 1 to 3, and .npz archives of them. Errors come back as text: `PATH: expected X, got Y`.
#ifndef ALIGNED_SUPPORT_NPY_H
#define ALIGNED_SUPPORT_NPY_H

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace aligned {

enum class DType { F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, Bool };
int64_t byteWidth(DType dtype);
/// NumPy's name: float16, uint8, ...
const char *name(DType dtype);

/// An array in C order, little-endian.
struct NpyArray {
  DType dtype = DType::F32;
  std::vector<int64_t> shape;
  std::vector<char> bytes;

  int64_t count() const {
    int64_t count = 1;
    for (int64_t extent : shape)
      count *= extent;
    return count;
  }
  template <typename T>
  const T *data() const {
    return reinterpret_cast<const T *>(bytes.data());
  }
};

/// "[2, 3]"
std::string shapeText(const std::vector<int64_t> &shape);

std::optional<NpyArray> readNpy(const std::string &path, std::string &error);
/// The arrays of an archive by name, without ".npy". Arrays of strings are left out.
std::optional<std::map<std::string, NpyArray>> readNpz(const std::string &path, std::string &error);
/// Writes version 1. Nothing is left behind where it fails.
bool writeNpy(const std::string &path, const NpyArray &array, std::string &error);

} // namespace aligned

#endif // ALIGNED_SUPPORT_NPY_H
