// A recursive descent parser that reads characters directly: PTX has few kinds of tokens, and what a word means is clear from
// where it stands. Registers are resolved while they are read, since PTX declares before it uses; names of braces inside a body
// get the number of their scope appended.

#include "Ptx.h"

#include <cctype>
#include <cstdlib>
#include <cstring>

namespace aligned::emulator {

namespace {

struct TypeRow {
  const char *name;
  unsigned bits;
};
// In the order of `Type`.
constexpr TypeRow typeTable[] = {
    {"", 0},       {"pred", 1},  {"b8", 8},      {"b16", 16},    {"b32", 32},    {"b64", 64}, {"b128", 128}, {"u8", 8},
    {"u16", 16},   {"u32", 32},  {"u64", 64},    {"s8", 8},      {"s16", 16},    {"s32", 32}, {"s64", 64},   {"f16", 16},
    {"f16x2", 32}, {"bf16", 16}, {"bf16x2", 32}, {"f32", 32},    {"f32x2", 64},  {"f64", 64}, {"tf32", 32},  {"u16x2", 32},
    {"s16x2", 32}, {"e4m3", 8},  {"e5m2", 8},    {"e4m3x2", 16}, {"e5m2x2", 16}, {"u4", 4},   {"s4", 4},     {"b1", 1},
};

} // namespace

Type typeNamed(std::string_view name) {
  for (size_t i = 1; i < std::size(typeTable); ++i)
    if (name == typeTable[i].name)
      return Type(i);
  return Type::None;
}

unsigned bitsOf(Type type) { return typeTable[size_t(type)].bits; }

bool isSigned(Type type) { return (type >= Type::S8 && type <= Type::S64) || type == Type::S16x2 || type == Type::S4; }

bool isFloat(Type type) { return (type >= Type::F16 && type <= Type::TF32) || (type >= Type::E4M3 && type <= Type::E5M2x2); }

const Function *Module::find(std::string_view name) const {
  for (const Function &function : functions)
    if (function.name == name)
      return &function;
  return nullptr;
}

namespace {

bool isWord(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.'; }

class Parser {
public:
  Parser(std::string_view text, Module &module, std::string &error) : text(text), module(module), error(error) {}

  bool parseModule() {
    while (skipSpace(), at < text.size())
      if (!parseTopLevel())
        return false;
    if (!module.version)
      return fail("expected a PTX module, which opens with .version");
    return true;
  }

private:
  //===--------------------------------------------------------------------===//
  // Characters and words
  //===--------------------------------------------------------------------===//

  bool fail(const std::string &message) { return failAt(line, message); }
  bool failAt(int where, const std::string &message) {
    if (error.empty())
      error = "line " + std::to_string(where) + ": " + message;
    return false;
  }
  bool unexpected(const std::string &wanted) {
    size_t end = at;
    while (end < text.size() && text[end] != '\n' && end - at < 60)
      ++end;
    return fail("expected " + wanted + ", got " +
                (at == text.size() ? "the end" : "'" + std::string(text.substr(at, end - at)) + "'"));
  }

  void skipSpace() {
    while (at < text.size()) {
      char c = text[at];
      if (c == '\n')
        ++line, ++at;
      else if (std::isspace(static_cast<unsigned char>(c)) || c == '\0')
        ++at;
      else if (c == '/' && at + 1 < text.size() && text[at + 1] == '/')
        skipLine();
      else if (c == '/' && at + 1 < text.size() && text[at + 1] == '*') {
        size_t end = text.find("*/", at + 2);
        end = end == std::string_view::npos ? text.size() : end + 2;
        for (; at < end; ++at)
          line += text[at] == '\n';
      } else
        return;
    }
  }
  void skipLine() {
    while (at < text.size() && text[at] != '\n')
      ++at;
  }

  char peek() {
    skipSpace();
    return at < text.size() ? text[at] : '\0';
  }
  bool take(char c) {
    if (peek() != c || at == text.size())
      return false;
    ++at;
    return true;
  }
  bool expect(char c) { return take(c) || unexpected(std::string("'") + c + "'"); }

  /// A run of the characters of a word; "::" belongs to it, as in .L2::128B.
  std::string_view peekWord() {
    skipSpace();
    size_t end = at;
    while (end < text.size()) {
      if (isWord(text[end]))
        ++end;
      else if (text[end] == ':' && end > at && end + 2 < text.size() && text[end + 1] == ':' && isWord(text[end + 2]))
        end += 2;
      else
        break;
    }
    return text.substr(at, end - at);
  }
  std::string_view word() {
    std::string_view result = peekWord();
    at += result.size();
    return result;
  }
  bool takeWord(std::string_view wanted) {
    if (peekWord() != wanted)
      return false;
    at += wanted.size();
    return true;
  }
  bool name(std::string &result) {
    std::string_view found = peekWord();
    if (found.empty() || found[0] == '.' || std::isdigit(static_cast<unsigned char>(found[0])))
      return unexpected("a name");
    result = word();
    return true;
  }
  bool skipString() {
    if (!expect('"'))
      return false;
    while (at < text.size() && text[at] != '"' && text[at] != '\n')
      ++at;
    return expect('"');
  }
  /// Past the brace that closes the one already taken.
  bool skipBraces() {
    for (int depth = 1; depth;) {
      char c = peek();
      if (!c)
        return unexpected("'}'");
      if (c == '"') {
        if (!skipString())
          return false;
        continue;
      }
      depth += (c == '{') - (c == '}');
      ++at;
    }
    return true;
  }

  //===--------------------------------------------------------------------===//
  // Numbers
  //===--------------------------------------------------------------------===//

  /// 12, -0x1F, 7U, 0f3F800000, 0d..., 1.5, WARP_SZ.
  bool number(Operand &result) {
    bool negative = false;
    while (peek() == '-' || peek() == '+')
      negative ^= text[at++] == '-';
    std::string digits(peekWord());
    if (digits.empty())
      return unexpected("a number");
    auto hexadecimal = [&](unsigned count) {
      if (digits.size() != count + 2)
        return false;
      for (size_t i = 2; i < digits.size(); ++i)
        if (!std::isxdigit(static_cast<unsigned char>(digits[i])))
          return false;
      return true;
    };
    char second = digits.size() > 1 && digits[0] == '0' ? char(std::tolower(digits[1])) : ' ';
    if (second == 'f' || second == 'd') {
      bool isDouble = second == 'd';
      if (!hexadecimal(isDouble ? 16 : 8))
        return unexpected("a floating-point number");
      result.kind = isDouble ? Operand::Double : Operand::Single;
      result.value = std::strtoull(digits.c_str() + 2, nullptr, 16) ^ (negative ? 1ull << (isDouble ? 63 : 31) : 0);
    } else if (digits == "WARP_SZ") {
      result.kind = Operand::Integer;
      result.value = negative ? -32 : 32;
    } else if (digits.find('.') != std::string::npos || (second != 'x' && digits.find_first_of("eE") != std::string::npos)) {
      std::string whole(text.substr(at, 40)); // the sign of an exponent is not part of a word
      char *end;
      double value = std::strtod(whole.c_str(), &end);
      size_t length = size_t(end - whole.c_str());
      if (length < digits.size())
        return unexpected("a number");
      at += length;
      result.kind = Operand::Double;
      value = negative ? -value : value;
      std::memcpy(&result.value, &value, sizeof value);
      return true;
    } else {
      if (digits.back() == 'U' || digits.back() == 'u')
        digits.pop_back();
      bool binary = second == 'b';
      char *end;
      const char *start = digits.c_str() + (binary ? 2 : 0);
      uint64_t value = std::strtoull(start, &end, binary ? 2 : 0);
      if (*end || end == start || !std::isdigit(static_cast<unsigned char>(*start)))
        return unexpected("a number");
      result.kind = Operand::Integer;
      result.value = negative ? 0 - value : value;
    }
    word();
    return true;
  }
  bool integer(uint64_t &result) {
    Operand operand;
    if (!number(operand))
      return false;
    if (operand.kind != Operand::Integer)
      return fail("expected an integer");
    result = operand.value;
    return true;
  }

  //===--------------------------------------------------------------------===//
  // Declarations
  //===--------------------------------------------------------------------===//

  bool parseTopLevel() {
    int start = line;
    std::string_view directive = peekWord();
    if (directive.empty() || directive[0] != '.')
      return unexpected("a directive");
    bool external = false;
    while (directive == ".visible" || directive == ".extern" || directive == ".weak" || directive == ".common") {
      external |= directive == ".extern";
      word();
      directive = peekWord();
    }
    if (directive == ".version") {
      word();
      std::string version(word());
      size_t dot = version.find('.');
      if (dot == std::string::npos)
        return failAt(start, "expected a version like 8.0, got '" + version + "'");
      module.version = unsigned(std::atoi(version.c_str()) * 10 + std::atoi(version.c_str() + dot + 1));
      return true;
    }
    if (directive == ".target") {
      word();
      module.target = word();
      while (take(','))
        word();
      return true;
    }
    if (directive == ".address_size") {
      word();
      uint64_t size;
      if (!integer(size))
        return false;
      module.addressSize = unsigned(size);
      return size == 64 || failAt(start, "expected .address_size 64, got " + std::to_string(size));
    }
    if (directive == ".entry" || directive == ".func")
      return parseFunction(external);
    if (directive == ".global" || directive == ".const" || directive == ".shared") {
      return parseVariables(module.variables, external);
    }
    if (directive == ".file" || directive == ".loc") {
      skipLine();
      return true;
    }
    if (directive == ".pragma") {
      word();
      return skipString() && expect(';');
    }
    if (directive == ".section") {
      word(), word();
      return expect('{') && skipBraces();
    }
    if (directive == ".alias") {
      while (at < text.size() && text[at] != ';')
        ++at;
      return expect(';');
    }
    return fail("unknown directive '" + std::string(directive) + "'");
  }

  /// .space .align 4 .b8 name[16] = {...}, without what follows.
  bool parseVariable(Variable &variable, bool parameter) {
    variable.line = line;
    bool pointer = false; // .ptr: what follows tells of the memory behind it
    uint64_t lanes = 1, align = parameter ? 0 : variable.align;
    for (;;) {
      std::string_view next = peekWord();
      if (next.empty() || next[0] != '.')
        break;
      std::string directive(word().substr(1));
      Type type = typeNamed(directive);
      if (directive == "align") {
        if (!integer(align))
          return false;
        if (!align || align > 4096 || (align & (align - 1)))
          return fail("expected an alignment that is a power of two up to 4096");
        if (pointer) // of what it points to
          align = 0;
      } else if (directive == "global")
        variable.space = parameter ? variable.space : Space::Global;
      else if (directive == "const")
        variable.space = parameter ? variable.space : Space::Constant;
      else if (directive == "shared")
        variable.space = parameter ? variable.space : Space::Shared;
      else if (directive == "local")
        variable.space = parameter ? variable.space : Space::Local;
      else if (directive == "param")
        variable.space = Space::Parameter;
      else if (directive == "v2" || directive == "v4")
        lanes = directive == "v2" ? 2 : 4;
      else if (directive == "ptr")
        pointer = true;
      else if (directive == "attribute") {
        if (!expect('('))
          return false;
        while (peek() && text[at] != ')')
          ++at;
        if (!expect(')'))
          return false;
      } else if (type != Type::None)
        variable.type = type;
      else
        return fail("unknown directive '." + directive + "' in a declaration");
    }
    if (variable.type == Type::None || variable.type == Type::Predicate)
      return unexpected("the type of a variable");
    if (!name(variable.name))
      return false;
    variable.bytes = bytesOf(variable.type) * lanes;
    variable.align = align ? align : variable.bytes;
    while (take('[')) {
      uint64_t count = 0;
      if (peek() != ']' && !integer(count))
        return false;
      if (__builtin_mul_overflow(variable.bytes, count, &variable.bytes) || variable.bytes > 1ull << 40)
        return fail("'" + variable.name + "' is too large");
      if (!expect(']'))
        return false;
    }
    if (take('='))
      return parseInitial(variable);
    return true;
  }

  bool parseInitial(Variable &variable, unsigned depth = 0) {
    if (depth > 8)
      return unexpected("fewer braces");
    if (take('{')) {
      if (take('}'))
        return true;
      do {
        if (!parseInitial(variable, depth + 1))
          return false;
      } while (take(','));
      return expect('}');
    }
    unsigned size = bytesOf(variable.type);
    char c = peek();
    if (std::isdigit(static_cast<unsigned char>(c)) || c == '-' || c == '+') {
      Operand operand;
      if (!number(operand))
        return false;
      uint64_t value = operand.value;
      if (operand.kind == Operand::Double && variable.type == Type::F32) {
        double wide;
        std::memcpy(&wide, &value, sizeof wide);
        float narrow = float(wide);
        value = 0;
        std::memcpy(&value, &narrow, sizeof narrow);
      }
      for (unsigned i = 0; i < size; ++i)
        variable.initial.push_back(uint8_t(value >> (8 * i)));
      return true;
    }
    std::string symbol;
    if (!name(symbol))
      return false;
    if (symbol == "generic" && (!expect('(') || !name(symbol) || !expect(')')))
      return false;
    uint64_t addend = 0;
    if ((peek() == '+' || peek() == '-') && !integer(addend))
      return false;
    if (size != 8)
      return fail("expected the address of '" + symbol + "' in an element of 64 bits");
    variable.pointers.push_back({variable.initial.size(), symbol, int64_t(addend)});
    variable.initial.resize(variable.initial.size() + 8);
    return true;
  }

  bool parseVariables(std::vector<Variable> &list, bool external) {
    Variable first;
    first.external = external;
    if (!parseVariable(first, false))
      return false;
    list.push_back(first);
    while (take(',')) { // only the name differs
      Variable next;
      next.external = external;
      next.space = first.space, next.type = first.type, next.align = first.align;
      next.line = line;
      if (!parseVariable(next, false))
        return false;
      list.push_back(next);
    }
    return expect(';');
  }

  bool parseParameters(std::vector<Variable> &list) {
    if (!expect('('))
      return false;
    if (take(')'))
      return true;
    do {
      if (peekWord() == ".reg")
        return fail("unsupported: a parameter in a register");
      Variable variable;
      if (!parseVariable(variable, true))
        return false;
      variable.space = Space::Parameter;
      list.push_back(variable);
    } while (take(','));
    return expect(')');
  }

  bool parseFunction(bool external) {
    Function result;
    result.line = line;
    result.entry = word() == ".entry";
    result.external = external;
    function = &result;
    scopes = {Scope{0, {}}};
    scopeParents = {0};
    nextScope = 1;
    if (!result.entry && peek() == '(' && !parseParameters(result.results))
      return false;
    if (!name(result.name) || (peek() == '(' && !parseParameters(result.parameters)))
      return false;
    while (peek() == '.') { // .maxntid 128, 1, 1
      std::string directive(word().substr(1));
      std::vector<uint32_t> &values = result.directives[directive];
      if (directive == "pragma") {
        if (!skipString() || !expect(';'))
          return false;
        continue;
      }
      if (std::isdigit(static_cast<unsigned char>(peek())))
        do {
          uint64_t value;
          if (!integer(value))
            return false;
          values.push_back(uint32_t(value));
        } while (take(','));
    }
    if (take(';')) {
      for (const Function &other : module.functions)
        if (other.name == result.name)
          return true;
      result.external = true;
      module.functions.push_back(std::move(result));
      return true;
    }
    if (!expect('{') || !parseBody())
      return false;
    for (Function &other : module.functions)
      if (other.name == result.name) {
        if (!other.external)
          return failAt(result.line, "'" + result.name + "' is defined twice");
        other = std::move(result);
        return true;
      }
    module.functions.push_back(std::move(result));
    return true;
  }

  //===--------------------------------------------------------------------===//
  // Bodies
  //===--------------------------------------------------------------------===//

  struct Scope {
    uint32_t number;
    std::map<std::string, uint32_t> registers;
  };

  bool parseBody() {
    std::vector<uint32_t> scopeOf; // of each instruction, to find its labels
    for (;;) {
      char c = peek();
      if (!c)
        return unexpected("'}'");
      if (take('{')) {
        scopeParents.push_back(scopes.back().number);
        scopes.push_back(Scope{nextScope++, {}});
        continue;
      }
      if (take('}')) {
        scopes.pop_back();
        if (scopes.empty())
          break;
        continue;
      }
      if (take(';'))
        continue;
      if (c == '.' ? !parseBodyDirective() : !parseInstructionOrLabel())
        return false;
      scopeOf.resize(function->instructions.size(), scopes.back().number);
    }
    // Labels may follow their uses.
    for (size_t i = 0; i < function->instructions.size(); ++i)
      for (Operand &operand : function->instructions[i].operands)
        if (operand.kind == Operand::Name && function->instructions[i].opcode.substr(0, 2) == "br")
          resolveLabel(operand.name, scopeOf[i]);
    for (auto &[list, labels] : function->branchTargets)
      for (std::string &label : labels)
        resolveLabel(label, 0);
    return true;
  }

  std::string scoped(const std::string &label, uint32_t scope) { return scope ? label + "@" + std::to_string(scope) : label; }
  void resolveLabel(std::string &label, uint32_t scope) {
    for (;; scope = scopeParents[scope]) {
      std::string candidate = scoped(label, scope);
      if (function->labels.count(candidate)) {
        label = candidate;
        return;
      }
      if (!scope)
        return;
    }
  }

  bool parseBodyDirective() {
    std::string directive(peekWord());
    if (directive == ".reg") {
      word();
      std::string_view name = peekWord();
      Type type = name.empty() ? Type::None : typeNamed(name.substr(1));
      if (type == Type::None)
        return unexpected("the type of registers");
      word();
      do {
        std::string prefix;
        if (!this->name(prefix))
          return false;
        if (take('<')) {
          uint64_t count;
          if (!integer(count) || !expect('>'))
            return false;
          if (count > 1000000)
            return fail("expected at most 1000000 registers, got " + std::to_string(count));
          for (uint64_t i = 0; i < count; ++i)
            declare(prefix + std::to_string(i), type);
        } else
          declare(prefix, type);
      } while (take(','));
      return expect(';');
    }
    if (directive == ".shared" || directive == ".local" || directive == ".param" || directive == ".global" ||
        directive == ".const") {
      return parseVariables(directive == ".global" || directive == ".const" ? module.variables : function->variables, false);
    }
    if (directive == ".pragma") {
      word();
      return skipString() && expect(';');
    }
    if (directive == ".loc" || directive == ".file") {
      skipLine();
      return true;
    }
    return fail("unknown directive '" + directive + "' in a body");
  }

  void declare(const std::string &name, Type type) {
    scopes.back().registers[name] = uint32_t(function->registers.size());
    function->registers.push_back({name, type});
  }

  bool parseInstructionOrLabel() {
    Instruction instruction;
    instruction.line = line;
    size_t start = at;
    if (take('@')) {
      bool negated = take('!');
      if (!operand(instruction.guard))
        return false;
      instruction.guard.negated = negated;
      if (instruction.guard.kind != Operand::Register || function->registers[instruction.guard.index].type != Type::Predicate)
        return fail("expected a predicate after '@'");
    }
    std::string_view opcode = word();
    if (opcode.empty())
      return unexpected("an instruction");
    if (instruction.guard.kind == Operand::Sink && take(':')) {
      std::string label(opcode);
      if (takeWord(".branchtargets")) {
        do {
          std::string target;
          if (!name(target))
            return false;
          function->branchTargets[label].push_back(target);
        } while (take(','));
        return expect(';');
      }
      if (peekWord() == ".callprototype") {
        while (at < text.size() && text[at] != ';')
          line += text[at++] == '\n';
        return expect(';');
      }
      label = scoped(label, scopes.back().number);
      if (!function->labels.emplace(label, uint32_t(function->instructions.size())).second)
        return failAt(instruction.line, "label '" + label + "' is defined twice");
      return true;
    }
    for (size_t begin = 0; begin <= opcode.size();) {
      size_t end = std::min(opcode.find('.', begin), opcode.size());
      std::string part(opcode.substr(begin, end - begin));
      if (begin)
        instruction.modifiers.push_back(part);
      else
        instruction.opcode = part;
      begin = end + 1;
    }
    if (instruction.opcode == "call")
      return parseCall(instruction, start);
    if (peek() != ';')
      do {
        Operand next;
        if (!operand(next))
          return false;
        instruction.operands.push_back(std::move(next));
      } while (take(','));
    return finish(instruction, start);
  }

  bool finish(Instruction &instruction, size_t start) {
    if (!expect(';'))
      return false;
    for (size_t i = start; i < at; ++i) {
      bool space = std::isspace(static_cast<unsigned char>(text[i]));
      if (!space)
        instruction.text += text[i];
      else if (!instruction.text.empty() && instruction.text.back() != ' ')
        instruction.text += ' ';
    }
    function->instructions.push_back(std::move(instruction));
    return true;
  }

  /// call.uni (results), name, (arguments): operands are the name and two vectors.
  bool parseCall(Instruction &instruction, size_t start) {
    auto list = [&](Operand &vector) {
      vector.kind = Operand::Vector;
      if (!expect('('))
        return false;
      if (take(')'))
        return true;
      do {
        Operand element;
        if (!operand(element))
          return false;
        vector.elements.push_back(element);
      } while (take(','));
      return expect(')');
    };
    Operand results, callee, arguments;
    results.kind = arguments.kind = Operand::Vector;
    if (peek() == '(' && (!list(results) || !expect(',')))
      return false;
    if (!operand(callee))
      return false;
    if (take(',') && !list(arguments))
      return false;
    while (take(',')) { // prototype of an indirect call
      Operand prototype;
      if (!operand(prototype))
        return false;
    }
    instruction.operands = {callee, results, arguments};
    return finish(instruction, start);
  }

  bool operand(Operand &result, unsigned depth = 0) {
    char c = peek();
    if (depth > 4)
      return unexpected("an operand without more brackets");
    if (take('{')) {
      result.kind = Operand::Vector;
      do {
        Operand element;
        if (!operand(element, depth + 1))
          return false;
        result.elements.push_back(std::move(element));
      } while (take(','));
      return expect('}');
    }
    if (take('[')) {
      result.kind = Operand::Address;
      Operand base;
      if (!operand(base, depth + 1))
        return false;
      while (peek() == '+' || peek() == '-') {
        uint64_t offset;
        if (!integer(offset))
          return false;
        result.value += offset;
      }
      result.elements.push_back(std::move(base));
      return expect(']');
    }
    if (take('!')) {
      if (!operand(result, depth + 1))
        return false;
      result.negated = true;
      return true;
    }
    if (std::isdigit(static_cast<unsigned char>(c)) || c == '-' || c == '+')
      return number(result);
    std::string_view found = word();
    if (found.empty())
      return unexpected("an operand");
    if (found == "_") {
      result.kind = Operand::Sink;
    } else if (found == "WARP_SZ") {
      result.kind = Operand::Integer;
      result.value = 32;
    } else {
      result.name = found;
      result.kind = found[0] == '%' ? Operand::Special : Operand::Name;
      for (auto scope = scopes.rbegin(); scope != scopes.rend(); ++scope)
        if (auto it = scope->registers.find(result.name); it != scope->registers.end()) {
          result.kind = Operand::Register;
          result.index = it->second;
          break;
        }
    }
    if (take('|')) {
      Operand pair;
      pair.kind = Operand::Pair;
      pair.elements.push_back(std::move(result));
      pair.elements.emplace_back();
      if (!operand(pair.elements.back(), depth + 1))
        return false;
      result = std::move(pair);
    }
    return true;
  }

  std::string_view text;
  size_t at = 0;
  int line = 1;
  Module &module;
  std::string &error;
  Function *function = nullptr;
  std::vector<Scope> scopes;
  std::vector<uint32_t> scopeParents;
  uint32_t nextScope = 1;
};

} // namespace

bool parse(std::string_view text, Module &module, std::string &error) {
  error.clear();
  module = Module();
  return Parser(text, module, error).parseModule();
}

} // namespace aligned::emulator
