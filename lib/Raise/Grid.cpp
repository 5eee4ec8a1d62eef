// See the header.
#include "Grid.h"

#include "Shapes.h"

#include "mlir/Dialect/Utils/ReshapeOpsUtils.h"
#include "llvm/Support/FormatVariadic.h"

#include <numeric>

using namespace mlir;
using namespace aligned;

static int64_t product(ArrayRef<int64_t> extents) { return std::accumulate(extents.begin(), extents.end(), int64_t(1), std::multiplies<int64_t>()); }

//===----------------------------------------------------------------------===//
// Readings
//===----------------------------------------------------------------------===//

bool Reading::inOrder() const { return outer.size() == (token ? 2u : 3u) && channel == 3 && (!token || *token == 2); }

std::optional<Reading> aligned::readingOf(ScalarTracer &tracer, const ScalarView &element, AffineExpr token, AffineExpr channel, AffineExpr valueChannel) {
  auto type = cast<RankedTensorType>(element.value.getType());
  if (!isAttentionFloat(type.getElementType()))
    return std::nullopt;
  auto reads = [](AffineExpr expr, AffineExpr other) {
    auto dim = dyn_cast_or_null<AffineDimExpr>(other);
    return dim && expr.isFunctionOfDim(dim.getPosition());
  };
  /// Of a wider tensor that a slice was taken from, attention would read more. An extent that isn't known is the tensor's own.
  auto isAllOf = [&](int64_t dim, AffineExpr expr) {
    auto loop = dyn_cast<AffineDimExpr>(expr);
    int64_t extent = loop ? tracer.extentOf(loop.getPosition()) : 1;
    return type.isDynamicDim(dim) || ShapedType::isDynamic(extent) || type.getDimSize(dim) == extent;
  };
  Reading reading{element.value, {}, {}, std::nullopt, -1};
  // A dimension of one channel has index 0, like others of extent 1: the last of them is taken.
  for (int64_t dim = type.getRank() - 1; dim >= 0; --dim) {
    AffineExpr expr = element.index[dim];
    if (reading.channel < 0 && expr == channel && isAllOf(dim, expr))
      reading.channel = dim;
    else if (token && !reading.token && expr == token && isAllOf(dim, expr))
      reading.token = dim;
    else if (reads(expr, token) || reads(expr, channel) || (valueChannel != channel && reads(expr, valueChannel)))
      return std::nullopt;
    else
      reading.outer.insert(reading.outer.begin(), dim);
  }
  if (reading.channel < 0 || (token && !reading.token) || reading.outer.size() > (token ? 2u : 4u)) // of Q also groups of heads
    return std::nullopt;
  for (int64_t dim : reading.outer) {
    if (type.isDynamicDim(dim))
      return std::nullopt;
    reading.outerIndex.push_back(element.index[dim]);
  }
  return reading;
}

//===----------------------------------------------------------------------===//
// Places
//===----------------------------------------------------------------------===//

bool Grid::enumerate(ScalarTracer &tracer, ArrayRef<AffineExpr> dims, AffineExpr channel, std::string &reason) {
  constexpr int64_t kMostPlaces = 1 << 16;
  resultRank = dims.size();
  bool found = false;
  points = {SmallVector<int64_t>(resultRank, 0)};
  for (auto [dim, expr] : llvm::enumerate(dims)) {
    if (!found && expr == channel) {
      channelDim = dim;
      found = true;
      continue;
    }
    int64_t extent = isa<AffineConstantExpr>(expr) ? 1 : tracer.extentOf(dim);
    if (ShapedType::isDynamic(extent) || extent == 0 || extent * static_cast<int64_t>(points.size()) > kMostPlaces) {
      reason = "expected a static batch, heads and queries, " + std::to_string(kMostPlaces) + " query rows at most, got a dimension of " + (ShapedType::isDynamic(extent) ? "unknown extent" : "extent " + std::to_string(extent));
      return false;
    }
    SmallVector<SmallVector<int64_t>> longer;
    for (const SmallVector<int64_t> &point : points)
      for (int64_t entry = 0; entry < extent; ++entry) {
        longer.push_back(point);
        longer.back()[dim] = entry;
      }
    points = std::move(longer);
  }
  for (SmallVector<int64_t> &point : points)
    point.resize(tracer.numDims(), 0);
  if (!found)
    reason = "expected the result to have a dimension of value channels";
  return found;
}

Grid::Places Grid::valuesOf(AffineExpr index) const {
  Places values;
  for (const SmallVector<int64_t> &point : points)
    values.push_back(valueAt(index, point));
  return values;
}

/// The outer dimensions of a reading as one, listed in this order.
Grid::Places Grid::flattened(const Reading &reading, ArrayRef<unsigned> order) const {
  Places all(points.size(), 0);
  for (unsigned number : order) {
    int64_t extent = reading.type().getDimSize(reading.outer[number]);
    for (auto [whole, part] : llvm::zip(all, valuesOf(reading.outerIndex[number])))
      whole = whole * extent + part;
  }
  return all;
}

static SmallVector<unsigned> ascending(unsigned count) {
  SmallVector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0);
  return order;
}

bool Grid::place(const Reading &query, const Reading &key, const Reading &value, std::string &reason) {
  auto extentsOf = [](const Reading &reading) {
    SmallVector<int64_t> extents;
    for (int64_t dim : reading.outer)
      extents.push_back(reading.type().getDimSize(dim));
    return extents;
  };
  SmallVector<int64_t> keyExtents = extentsOf(key), valueExtents = extentsOf(value);
  Places kvPlaces = flattened(key, ascending(keyExtents.size()));
  if (kvPlaces != flattened(value, ascending(valueExtents.size())) || product(keyExtents) != product(valueExtents)) {
    reason = llvm::formatv("expected K and V to be read by the same batch and heads, got {0} and {1}", key.type(), value.type()).str();
    return false;
  }
  const SmallVector<int64_t> &extents = keyExtents.size() == 2 ? keyExtents : valueExtents;
  if (keyExtents.size() == 2 && valueExtents.size() == 2 && keyExtents != valueExtents) {
    reason = llvm::formatv("expected K and V to agree in batch and heads, got {0} and {1}", key.type(), value.type()).str();
    return false;
  }
  kvHeads = extents.empty() ? 1 : extents.back();
  batch = extents.size() == 2 ? extents.front() : 1;
  // All of Q, K and V takes part: of a wider tensor, attention would read more.
  const bool isAllOfKeys = llvm::SmallDenseSet<int64_t>(kvPlaces.begin(), kvPlaces.end()).size() == static_cast<size_t>(batch * kvHeads);
  if (isAllOfKeys && product(extentsOf(query)) == static_cast<int64_t>(points.size()) && placeQueries(query, kvPlaces))
    return true;
  reason = llvm::formatv("expected every query head to read one kv head of its own batch entry, heads in groups, got queries {0} over keys {1}", query.type(), key.type()).str();
  return false;
}

/// Finds an order of Q's outer dimensions that lists batch, heads, queries.
bool Grid::placeQueries(const Reading &query, ArrayRef<int64_t> kvPlaces) {
  const int64_t total = points.size();
  SmallVector<unsigned> order = ascending(query.outer.size());
  do {
    Places rows = flattened(query, order);
    SmallVector<bool> taken(total, false);
    if (!llvm::all_of(rows, [&](int64_t row) { return row < total && !std::exchange(taken[row], true); }))
      return false; // in any order: a row of Q serves several places, or none does
    // The last dimension is the query's, or there is one query.
    for (bool hasQueries : {query.outer.size() > 1, false}) {
      queries = hasQueries ? query.type().getDimSize(query.outer[order.back()]) : 1;
      heads = total / (batch * queries);
      if (total % (batch * queries) || heads % kvHeads)
        continue;
      auto fits = [&](auto pair) {
        auto [row, kv] = pair;
        return row / (heads * queries) * kvHeads + row / queries % heads / group() == kv;
      };
      if (!llvm::all_of(llvm::zip(rows, kvPlaces), fits))
        continue;
      batches.clear(), headsAt.clear(), queriesAt.clear();
      for (int64_t row : rows) {
        batches.push_back(row / (heads * queries));
        headsAt.push_back(row / queries % heads);
        queriesAt.push_back(row % queries);
      }
      queryOrder = order;
      return true;
    }
  } while (std::next_permutation(order.begin(), order.end()));
  return false;
}

std::optional<AffineExpr> Grid::fit(ScalarTracer &tracer, AffineExpr index, AffineExpr token) const {
  MLIRContext *context = tracer.context;
  AffineExpr b = getAffineDimExpr(0, context), h = getAffineDimExpr(1, context), q = getAffineDimExpr(2, context), t = getAffineConstantExpr(0, context);
  if (auto dim = dyn_cast<AffineDimExpr>(token); dim && index.isFunctionOfDim(dim.getPosition())) {
    t = getAffineDimExpr(3, context);
    index = tracer.simplify(index - token);
    if (index.isFunctionOfDim(dim.getPosition()))
      return std::nullopt;
  }
  for (unsigned dim = 0; dim < tracer.numDims(); ++dim) // what isn't a place's has no value there
    if (index.isFunctionOfDim(dim) && (dim >= resultRank || dim == channelDim))
      return std::nullopt;
  Places values = valuesOf(index);
  AffineExpr kvHead = h.floorDiv(group());
  for (AffineExpr candidate : {getAffineConstantExpr(0, context), b, h, q, kvHead, h % group(), b * heads + h, b * kvHeads + kvHead}) {
    auto at = [&](size_t place) { return valueAt(candidate, {batches[place], headsAt[place], queriesAt[place]}); };
    int64_t offset = values.front() - at(0);
    if (llvm::all_of(llvm::seq<size_t>(0, values.size()), [&](size_t place) { return values[place] == at(place) + offset; }))
      return simplifyAffineExpr(candidate + offset + t, 4, 0);
  }
  return std::nullopt;
}

SmallVector<int64_t> Grid::placeOf(int64_t query) const {
  for (size_t place = 0; place < points.size(); ++place)
    if (batches[place] == 0 && headsAt[place] == 0 && queriesAt[place] == query)
      return points[place];
  llvm_unreachable("every query is somewhere");
}

//===----------------------------------------------------------------------===//
// Layouts
//===----------------------------------------------------------------------===//

static Value reshape(ImplicitLocOpBuilder &b, Value tensor, ArrayRef<int64_t> shape) {
  auto from = cast<RankedTensorType>(tensor.getType());
  auto type = RankedTensorType::get(shape, from.getElementType());
  if (from == type)
    return tensor;
  if (std::optional<SmallVector<ReassociationIndices>> groups = getReassociationIndicesForReshape(from, type)) {
    if (from.getRank() > type.getRank())
      return tensor::CollapseShapeOp::create(b, type, tensor, *groups);
    return tensor::ExpandShapeOp::create(b, type, tensor, *groups);
  }
  if (!from.hasStaticShape())
    return {};
  ReassociationIndices all = llvm::to_vector<2>(llvm::seq<int64_t>(0, from.getRank()));
  Value line = tensor::CollapseShapeOp::create(b, tensor, SmallVector<ReassociationIndices>{all});
  all = llvm::to_vector<2>(llvm::seq<int64_t>(0, type.getRank()));
  return tensor::ExpandShapeOp::create(b, type, line, SmallVector<ReassociationIndices>{all});
}

Value Grid::canonical(ImplicitLocOpBuilder &b, const Reading &reading) const {
  SmallVector<int64_t> permutation, shape;
  if (reading.token) {
    permutation.append(reading.outer);
    permutation.push_back(*reading.token);
    shape = {batch, kvHeads, reading.type().getDimSize(*reading.token)};
  } else {
    for (unsigned number : queryOrder)
      permutation.push_back(reading.outer[number]);
    shape = {batch, heads, queries};
  }
  permutation.push_back(reading.channel);
  shape.push_back(reading.channels());
  return reshape(b, transposed(b, reading.tensor, permutation), shape);
}

/// How far apart in memory elements of the result are whose batch, kv head, head of a group, query or channel differ by one. Nothing where that is not the
/// same everywhere.
std::optional<std::array<int64_t, 5>> Grid::stridesIn(RankedTensorType type) const {
  if (!type.hasStaticShape())
    return std::nullopt;
  SmallVector<int64_t> apart(type.getRank(), 1);
  for (int64_t dim = type.getRank() - 2; dim >= 0; --dim)
    apart[dim] = apart[dim + 1] * type.getDimSize(dim + 1);
  std::array<int64_t, 5> strides = {0, 0, 0, 0, apart[channelDim]};
  SmallVector<std::array<int64_t, 5>> coordinates;
  SmallVector<int64_t> offsets;
  for (size_t place = 0; place < points.size(); ++place) {
    coordinates.push_back({batches[place], headsAt[place] / group(), headsAt[place] % group(), queriesAt[place], 0});
    offsets.push_back(0);
    for (unsigned dim = 0; dim < resultRank; ++dim)
      offsets.back() += points[place][dim] * apart[dim];
    ArrayRef<int64_t> at = coordinates.back();
    if (llvm::count(at, 0) == 4 && llvm::is_contained(at, 1))
      strides[llvm::find(at, 1) - at.begin()] = offsets.back();
  }
  for (auto [at, offset] : llvm::zip(coordinates, offsets))
    if (std::inner_product(at.begin(), at.end(), strides.begin(), int64_t(0)) != offset)
      return std::nullopt;
  return strides;
}

Value Grid::layOut(ImplicitLocOpBuilder &b, Value attention, RankedTensorType type) const {
  const std::array<int64_t, 5> strides = *stridesIn(type), extents = {batch, kvHeads, group(), queries, type.getDimSize(channelDim)};
  SmallVector<int64_t> wide, order;
  for (int64_t coordinate = 0; coordinate < 5; ++coordinate)
    if (extents[coordinate] != 1)
      order.push_back(coordinate), wide.push_back(extents[coordinate]);
  SmallVector<int64_t> permutation = llvm::to_vector(llvm::seq<int64_t>(0, order.size()));
  llvm::sort(permutation, [&](int64_t a, int64_t c) { return strides[order[a]] > strides[order[c]]; });
  if (!llvm::is_sorted(permutation))
    attention = transposed(b, reshape(b, attention, wide), permutation);
  return reshape(b, attention, type.getShape());
}
