// Weights `[batch, outputs, heads, slots]` and the vectors of their windows. A slot without a key is never read, nor
// written: `dot` finds it filled.

template <typename T, int ND, int D, bool BIAS>
[[kernel, max_total_threads_per_threadgroup(128)]] void dot_walk(
    const device T* x [[buffer(0)]], const device T* y [[buffer(1)]], const device float* bias [[buffer(2)]],
    device T* result [[buffer(3)]], const device int4* table [[buffer(4)]],
    const SPACE Geometry<ND>* geometries [[buffer(5)]], constant float& scale [[buffer(6)]],
    uint3 group [[threadgroup_position_in_grid]], uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  constexpr int BK = chunk<T, D, 0>();
  threadgroup vec<T, 4> memory[BK * stride_of<T>(D) / 4];
  threadgroup uint places[BK];
  threadgroup int tokens[BK];
  threadgroup int relatives[BK];
  threadgroup int slots[BK];
  threadgroup T* columns = reinterpret_cast<threadgroup T*>(memory);
  const Document<ND> document = document_of_tile<ND, false>(geometries, table, group, lane);
  const SPACE Geometry<ND>& g = *document.geometry;
  const int head = group.y, kv_head = head / (g.heads / g.kv_heads), column = lane_column(lane);
  const uint thread_index = simd * 32 + lane;
  const Tile<ND> tile(g, table, document.index, lane);
  const Row<ND> row(g, table, tile, simd, lane, false);
  const long place = vector_at(document.rows, row.token, g.heads, head, 1);
  const long first = vector_at(document.columns, 0, g.kv_heads, kv_head, D);
  const device float* row_bias = bias + long(head) * g.relative_count + row.relative;
  Matrix<T> rows[(D + 7) / 8];
  load_rows<T, D>(rows, x + place * D, column);
  for (int start = 0; start < tile.columns; start += BK) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_index < uint(BK)) {
      const Column c = column_at<ND>(g, table, tile, start + thread_index, false);
      places[thread_index] = c.place;
      tokens[thread_index] = c.token < 0 ? -1 : c.token;
      relatives[thread_index] = c.relative;
      slots[thread_index] = c.slot;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    stage<T, D, BK>(columns, y + first, y + first, tokens, g.kv_heads * D, thread_index);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    Matrix<float> scores[BK / 8];
    multiply<T, D, BK>(scores, rows, columns);
    UNROLL
    for (int e = 0; e < BK / 4; e++) {
      const int j = e / 2 * 8 + column + e % 2;
      if (!row.real || !row.touches(places[j])) continue;
      float score = scores[e / 2].thread_elements()[e % 2] * scale;
      if (BIAS) score += row_bias[relatives[j]];
      result[place * g.slot_count + row.slot + slots[j]] = T(score);
    }
  }
}

// Rows take the vectors of columns that they touch, times the weight of the pair. With INVERSE rows are keys.
template <typename W, typename T, int ND, int D, bool INVERSE>
METAL_FUNC void mix_tile(const device W* weights, const device T* columns, device T* result, const device int4* table,
                         const SPACE Geometry<ND>* geometries, threadgroup T* staged, threadgroup uint* places,
                         threadgroup int* tokens, threadgroup int* slots, uint3 group, uint simd, uint lane) {
  constexpr int BK = chunk<T, D, 0>(), PARTS = (D + 7) / 8;
  const Document<ND> document = document_of_tile<ND, false>(geometries, table, group, lane);
  const SPACE Geometry<ND>& g = *document.geometry;
  const int per_kv_head = g.heads / g.kv_heads, column = lane_column(lane);
  const int row_heads = INVERSE ? g.kv_heads : g.heads, column_heads = INVERSE ? g.heads : g.kv_heads;
  const int first_head = INVERSE ? int(group.y) * per_kv_head : int(group.y) / per_kv_head;
  const uint thread_index = simd * 32 + lane;
  const Tile<ND> tile(g, table, document.index, lane);
  const Row<ND> row(g, table, tile, simd, lane, INVERSE);
  const long place = vector_at(document.rows, row.token, row_heads, group.y, 1);
  Matrix<float> sums[PARTS];
  for (int i = 0; i < PARTS; i++) sums[i] = Matrix<float>(0.0f);
  for (int head = first_head; head < first_head + (INVERSE ? per_kv_head : 1); head++) {
    const long first = vector_at(document.columns, 0, column_heads, head, 1);
    for (int start = 0; start < tile.columns; start += BK) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
      if (thread_index < uint(BK)) {
        const Column c = column_at<ND>(g, table, tile, start + thread_index, INVERSE);
        places[thread_index] = c.place;
        tokens[thread_index] = c.token < 0 ? -1 : c.token;
        slots[thread_index] = c.slot;
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      stage<T, D, BK>(staged, columns + first * D, columns + first * D, tokens, column_heads * D, thread_index);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      Matrix<T> parts[BK / 8];
      UNROLL
      for (int e = 0; e < BK / 4; e++) {
        const int j = e / 2 * 8 + column + e % 2;
        const long output = INVERSE ? first + long(tokens[j]) * column_heads : place;
        const bool seen = row.touches(places[j]);
        parts[e / 2].thread_elements()[e % 2] = seen ? T(weights[output * g.slot_count + row.slot + slots[j]]) : T(0);
      }
      accumulate<T, D, BK>(sums, parts, staged);
    }
  }
  if (row.real) store_rows<T, D>(result + place * D, sums, column, 1.0f);
}

// Declares the threadgroup memory of a kernel, which the language allows in kernels only.
#define STAGED(T, D)                                          \
  threadgroup vec<T, 4> memory[chunk<T, D, 0>() * stride_of<T>(D) / 4]; \
  threadgroup uint places[chunk<T, D, 0>()];                  \
  threadgroup int tokens[chunk<T, D, 0>()];                   \
  threadgroup int slots[chunk<T, D, 0>()];                    \
  threadgroup T* staged = reinterpret_cast<threadgroup T*>(memory);

template <typename W, typename T, int ND, int D>
[[kernel, max_total_threads_per_threadgroup(128)]] void mix_walk(
    const device W* weights [[buffer(0)]], const device T* y [[buffer(1)]], device T* result [[buffer(2)]],
    const device int4* table [[buffer(3)]], const SPACE Geometry<ND>* geometries [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]], uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  STAGED(T, D)
  mix_tile<W, T, ND, D, false>(weights, y, result, table, geometries, staged, places, tokens, slots, group, simd, lane);
}

template <typename W, typename T, int ND, int D>
[[kernel, max_total_threads_per_threadgroup(128)]] void mix_back_walk(
    const device W* weights [[buffer(0)]], const device T* x [[buffer(1)]], device T* result [[buffer(2)]],
    const device int4* table [[buffer(3)]], const SPACE Geometry<ND>* geometries [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]], uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  STAGED(T, D)
  mix_tile<W, T, ND, D, true>(weights, x, result, table, geometries, staged, places, tokens, slots, group, simd, lane);
}
