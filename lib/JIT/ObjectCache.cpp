// See the header.
#include "ObjectCache.h"

#include "llvm/ADT/SmallString.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/Endian.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/SHA256.h"
#include "llvm/Support/xxhash.h"
#include "llvm/Support/raw_ostream.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <vector>

using namespace llvm;
using namespace aligned;

namespace {

constexpr StringRef kMagic = "aligned1", kSuffix = ".aligned";
constexpr size_t kHeader = 8 + 8; // magic, checksum of the content

std::string checksumOf(StringRef content) {
  char bytes[8];
  support::endian::write64le(bytes, xxh3_64bits(content));
  return std::string(bytes, 8);
}

std::string cacheFolder() {
  if (const char *said = std::getenv("ALIGNED_CACHE_DIR"); said && *said)
    return StringRef(said) == "off" ? "" : said;
  SmallString<128> folder;
  if (!sys::path::cache_directory(folder))
    return "";
  sys::path::append(folder, "alignedkv");
  return folder.str().str();
}

/// Removes the entries that were not used for longest, until the rest is half of what may be kept.
void shrink(StringRef folder) {
  struct Entry {
    std::string path;
    uint64_t size;
    sys::TimePoint<> used;
  };
  std::vector<Entry> entries;
  uint64_t total = 0;
  std::error_code error;
  for (sys::fs::directory_iterator file(folder, error), end; !error && file != end; file.increment(error)) {
    sys::fs::file_status status;
    if (sys::fs::status(file->path(), status) || !StringRef(file->path()).contains(kSuffix))
      continue;
    entries.push_back({file->path(), status.getSize(), status.getLastModificationTime()});
    total += status.getSize();
  }
  if (total <= ObjectCache::kMostBytes)
    return;
  std::sort(entries.begin(), entries.end(), [](const Entry &a, const Entry &b) { return a.used < b.used; });
  for (const Entry &entry : entries) {
    if (total <= ObjectCache::kMostBytes / 2)
      break;
    if (!sys::fs::remove(entry.path))
      total -= entry.size;
  }
}

} // namespace

ObjectCache::ObjectCache(ArrayRef<StringRef> source) : folder(cacheFolder()) {
  if (folder.empty())
    return;
  SHA256 hash;
  for (StringRef part : source) {
    char length[8];
    support::endian::write64le(length, part.size()); // so that parts can't run into one another
    hash.update(StringRef(length, 8));
    hash.update(part);
  }
  SmallString<128> file(folder);
  sys::path::append(file, toHex(hash.final(), /*LowerCase=*/true) + kSuffix);
  path = file.str().str();
}

std::optional<std::string> ObjectCache::load() const {
  if (path.empty())
    return std::nullopt;
  auto buffer = MemoryBuffer::getFile(path, /*IsText=*/false, /*RequiresNullTerminator=*/false);
  if (!buffer)
    return std::nullopt;
  StringRef all = (*buffer)->getBuffer();
  if (all.size() < kHeader || !all.starts_with(kMagic) || all.slice(8, kHeader) != checksumOf(all.drop_front(kHeader)))
    return std::nullopt;
  int file;
  if (!sys::fs::openFileForWrite(path, file, sys::fs::CD_OpenExisting, sys::fs::OF_Append)) { // used now
    sys::fs::setLastAccessAndModificationTime(file, std::chrono::system_clock::now());
    sys::fs::closeFile(file);
  }
  return all.drop_front(kHeader).str();
}

void ObjectCache::store(StringRef content) const {
  if (path.empty() || sys::fs::create_directories(folder, /*IgnoreExisting=*/true, sys::fs::owner_all))
    return;
  int file;
  SmallString<128> beside;
  if (sys::fs::createUniqueFile(path + "-%%%%%%%%", file, beside))
    return;
  bool isWritten;
  {
    raw_fd_ostream os(file, /*shouldClose=*/true);
    os << kMagic << checksumOf(content) << content;
    os.close();
    isWritten = !os.has_error();
    os.clear_error();
  }
  if (!isWritten || sys::fs::rename(beside, path))
    sys::fs::remove(beside);
  shrink(folder);
}
