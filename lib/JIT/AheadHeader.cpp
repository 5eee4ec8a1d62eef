// The header of an object file: one prototype, and for each cache a function that makes it.
#include "Ahead.h"

#include "aligned/Runtime/Call.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/Format.h"

using namespace llvm;
using namespace aligned;

namespace {

constexpr const char *kTypes[] = {"f16", "bf16", "f32", "f64", "i1", "i8", "i16", "i32", "i64"};
/// Of an element in C. Those of 16 bits are bits of a number.
constexpr const char *kElements[] = {"uint16_t", "uint16_t", "float", "double", "uint8_t", "int8_t", "int16_t", "int32_t", "int64_t"};
constexpr const char *kKinds[] = {"ALIGNED_FORMAT_FIXED", "ALIGNED_FORMAT_FLOAT"};
constexpr const char *kRoles[] = {"ALIGNED_ROLE_KEY", "ALIGNED_ROLE_VALUE"};
constexpr const char *kCacheElements[] = {"ALIGNED_ELEMENT_F16", "ALIGNED_ELEMENT_BF16", "ALIGNED_ELEMENT_F32"};

bool isOpen(const aligned_type &type, int32_t dim) { return type.shape[dim] == ALIGNED_DYNAMIC; }
bool isOpen(const aligned_type &type) { return is_contained(ArrayRef(type.shape, type.rank), int64_t(ALIGNED_DYNAMIC)); }

/// f16 [2, 8, arg0_size2, 32]; what is open in a result is known behind the call.
std::string shapeOf(const aligned_type &type, const std::string &name, bool isResult) {
  std::string text = std::string(kTypes[type.dtype]) + " [";
  for (int32_t dim = 0; dim < type.rank; ++dim) {
    std::string open = type.is_cache ? "tokens" : isResult ? name + "_shape[" + std::to_string(dim) + "]" : name + "_size" + std::to_string(dim);
    text += (dim ? ", " : "") + (isOpen(type, dim) ? open : std::to_string(type.shape[dim]));
  }
  return text + "]";
}

struct Parameter {
  std::string text, meaning;
};

std::vector<Parameter> parametersOf(const Interface &interface, StringRef function) {
  std::vector<Parameter> parameters;
  for (auto [number, type] : enumerate(interface.arguments)) {
    const std::string name = "arg" + std::to_string(number), shape = shapeOf(type, name, false);
    if (type.is_cache) {
      parameters.push_back({"aligned_cache *" + name, (type.format.role == ALIGNED_ROLE_KEY ? "keys, " : "values, ") + shape + ", made by " + function.str() + "_new_" + name});
      continue;
    }
    parameters.push_back({std::string("const ") + kElements[type.dtype] + " *" + name, shape});
    for (int32_t dim = 0; dim < type.rank; ++dim)
      if (isOpen(type, dim))
        parameters.push_back({"int64_t " + name + "_size" + std::to_string(dim), ""});
  }
  for (auto [number, type] : enumerate(interface.results)) {
    const std::string name = "out" + std::to_string(number), shape = shapeOf(type, name, true);
    if (type.is_cache) {
      parameters.push_back({"aligned_cache **" + name, shape + ", the argument that was appended to, or a cache of yours to destroy; may be null"});
    } else if (isOpen(type)) {
      parameters.push_back({std::string(kElements[type.dtype]) + " **" + name, shape + ", memory of yours to free()"});
      parameters.push_back({"int64_t " + name + "_shape[" + std::to_string(type.rank) + "]", ""});
    } else {
      parameters.push_back({std::string(kElements[type.dtype]) + " *" + name, shape + ", written to your memory"});
    }
  }
  return parameters;
}

void writeMaker(raw_ostream &os, const Interface &interface, size_t number, StringRef function) {
  const aligned_type &type = interface.arguments[number];
  os << "\n/* Makes an empty cache as arg" << number << " takes it, with room for `capacity` tokens; it grows. Null where that fails. */\n"
     << "static inline aligned_cache *" << function << "_new_arg" << number << "(int64_t capacity) {\n";
  const aligned_format &format = type.format;
  os << "  const aligned_format format = {" << kKinds[format.kind] << ", " << kRoles[format.role] << ", " << kCacheElements[format.element] << ", " << format.planes
     << ", {" << join(map_range(ArrayRef(format.width, format.planes), [](int32_t width) { return std::to_string(width); }), ", ") << "}};\n";
  std::vector<std::string> steps; // behind its making
  if (!interface.keyOffsets[number].empty()) {
    os << "  static const float offset[] = {";
    ListSeparator comma;
    for (float value : interface.keyOffsets[number])
      os << comma << llvm::format("%.9g", value);
    os << "};\n";
    steps.push_back("aligned_cache_set_offset(cache, offset)");
  }
  if (type.resident != format.planes)
    steps.push_back("aligned_cache_drop_planes(cache, " + std::to_string(type.resident) + ")");
  else if (format.kind == ALIGNED_FORMAT_FIXED && interface.denseUpTo)
    steps.push_back("aligned_cache_keep_dense(cache, " + std::to_string(interface.denseUpTo) + ")");
  std::string make = "aligned_cache_create(&format, ";
  for (int32_t dim : {0, 1, 3}) // which types of caches say
    make += std::to_string(type.shape[dim]) + ", ";
  make += "capacity)";
  if (steps.empty()) {
    os << "  return " << make << ";\n}\n";
    return;
  }
  os << "  aligned_cache *cache = " << make << ";\n  if (cache && (" << join(steps, " || ") << ")) {\n    aligned_cache_destroy(cache);\n    return 0;\n  }\n  return cache;\n}\n";
}

} // namespace

Error aligned::checkName(StringRef name) {
  const bool isIdentifier = !name.empty() && !isDigit(name[0]) && all_of(name, [](char c) { return isAlnum(c) || c == '_'; });
  constexpr StringLiteral kWords[] = {"auto",   "break",  "case",     "char",   "const",  "continue", "default",  "do",       "double", "else",   "enum",     "extern", "float",
                                      "for",    "goto",   "if",       "inline", "int",    "long",     "register", "restrict", "return", "short",  "signed",   "sizeof", "static",
                                      "struct", "switch", "typedef", "union",  "unsigned", "void",    "volatile", "while",    "main"};
  if (!isIdentifier || is_contained(kWords, name) || name.starts_with("aligned_") || name.starts_with("_"))
    return createStringError("expected a name that a program in C can give to a function of its own, got '" + name + "'; another may be given");
  return Error::success();
}

std::string aligned::headerOf(const Interface &interface, const AheadMachine &machine, StringRef name) {
  std::string text;
  raw_string_ostream os(text);
  const std::string guard = "ALIGNED_OBJECT_" + name.upper() + "_H";
  os << "/* " << name << ".o, compiled by AlignedKV for " << machine.name() << ": link it with -lAlignedRuntime -lm.\n"
     << " *\n"
     << " * Arrays are contiguous, the last dimension innermost, and those of f16 and bf16 hold the numbers' bits. Arguments are yours and only read, but for caches, which are\n"
     << " * appended to in place. A cache is used by one call at a time. */\n"
     << "#ifndef " << guard << "\n#define " << guard << "\n\n#include \"aligned/Runtime/Call.h\"\n\n"
     << "#if ALIGNED_RT_ABI != " << ALIGNED_RT_ABI << "\n#error \"expected the runtime of version " << ALIGNED_RT_ABI << " that " << name << ".o was compiled for\"\n#endif\n\n"
     << "#ifdef __cplusplus\nextern \"C\" {\n#endif\n\n"
     << "/* Returns 0; or not, with a message in aligned_last_error(), and then nothing is left to free. */\n"
     << "int " << name << "(";
  const std::vector<Parameter> parameters = parametersOf(interface, name);
  for (auto [number, parameter] : enumerate(parameters)) {
    const bool isLast = number + 1 == parameters.size();
    os << (number ? "    " : "\n    ") << parameter.text << (isLast ? ");" : ",");
    if (!parameter.meaning.empty())
      os << " /* " << parameter.meaning << " */";
    os << "\n";
  }
  if (parameters.empty())
    os << "void);\n";
  for (auto [number, type] : enumerate(interface.arguments))
    if (type.is_cache)
      writeMaker(os, interface, number, name);
  os << "\n#ifdef __cplusplus\n}\n#endif\n#endif\n";
  return text;
}
