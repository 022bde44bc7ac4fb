// Gradients of a tile of rows, from columns that stream past. Both kernels recompute the weights from the log-sum-exp; no
// float is ever added by two threads, so results do not depend on the schedule.
//
//   rows       row, row_side      columns    column, column_side
//   queries    query, grad_out    keys       key, value
//   keys       key, value         queries    query, grad_out
//
// A pair's score is scale * row . column, the gradient of its weight row_side . column_side.

// Threadgroup memory of a chunk of columns.
template <typename T>
struct Chunk {
  threadgroup T* column;
  threadgroup T* side;
  threadgroup uint* places;
  threadgroup int* tokens;
  threadgroup int* relatives;
  threadgroup float2* known;  // lse in powers of two and delta, where columns are queries
};

template <typename T, int ND, int D, int DV, bool BIAS, bool EXTRA, bool DOCUMENTS, bool INVERSE>
METAL_FUNC void attend_back_tile(
    const device T* rows, const device T* row_sides, const device T* columns, const device T* column_sides,
    const device float* bias, const device T* extra_columns, const device T* extra_sides, const device float* lse,
    const device float* delta, device T* grad_rows, device T* grad_sides, const device int4* table,
    const SPACE Geometry<ND>* geometries, float scale, const thread Chunk<T>& chunk_memory, uint3 group, uint simd, uint lane) {
  constexpr int BK = chunk<T, D, DV>(), PARTS = (D + 7) / 8, SIDE_PARTS = (DV + 7) / 8;
  const Document<ND> document = document_of_tile<ND, DOCUMENTS>(geometries, table, group, lane);
  const SPACE Geometry<ND>& g = *document.geometry;
  const int per_kv_head = g.heads / g.kv_heads, column = lane_column(lane);
  const int row_heads = INVERSE ? g.kv_heads : g.heads, column_heads = INVERSE ? g.heads : g.kv_heads;
  const int first_head = INVERSE ? int(group.y) * per_kv_head : int(group.y) / per_kv_head;
  const uint thread_index = simd * 32 + lane;
  const float unit = scale * M_LOG2E_F;
  const Tile<ND> tile(g, table, document.index, lane);
  const Row<ND> row(g, table, tile, simd, lane, INVERSE);
  const long place = vector_at(document.rows, row.token, row_heads, group.y, 1);
  const long first_extra = EXTRA ? vector_at(document.extras, 0, column_heads, first_head, 1) : 0;
  float2 row_known = float2(0);
  if (!INVERSE && column == 0) row_known = float2(lse[place] * M_LOG2E_F, delta[place]);
  // The lane of the row that holds column 0.
  row_known = simd_shuffle(row_known, ushort(lane & ~9u));
  Matrix<T> row_parts[PARTS], side_parts[SIDE_PARTS];
  load_rows<T, D>(row_parts, rows + place * D, column);
  load_rows<T, DV>(side_parts, row_sides + place * DV, column);
  Matrix<float> sums[PARTS], side_sums[SIDE_PARTS];
  for (int i = 0; i < PARTS; i++) sums[i] = Matrix<float>(0.0f);
  for (int i = 0; i < SIDE_PARTS; i++) side_sums[i] = Matrix<float>(0.0f);

  for (int head = first_head; head < first_head + (INVERSE ? per_kv_head : 1); head++) {
    const long first = vector_at(document.columns, 0, column_heads, head, 1);
    const device float* row_bias = bias + long(INVERSE ? head : int(group.y)) * g.relative_count + row.relative;
    for (int start = 0; start < tile.columns + (EXTRA ? g.extra : 0); start += BK) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
      if (thread_index < uint(BK)) {
        const Column c = column_at<ND>(g, table, tile, start + thread_index, INVERSE);
        chunk_memory.places[thread_index] = c.place;
        chunk_memory.tokens[thread_index] = c.token;
        if (BIAS) chunk_memory.relatives[thread_index] = c.relative;
        if (INVERSE) {
          const long at = first + long(max(c.token, 0)) * column_heads;
          chunk_memory.known[thread_index] = float2(lse[at] * M_LOG2E_F, delta[at]);
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      stage<T, D, BK>(chunk_memory.column, columns + first * D, extra_columns + first_extra * D, chunk_memory.tokens,
                      column_heads * D, thread_index);
      stage<T, DV, BK>(chunk_memory.side, column_sides + first * DV, extra_sides + first_extra * DV,
                       chunk_memory.tokens, column_heads * DV, thread_index);
      threadgroup_barrier(mem_flags::mem_threadgroup);

      bool seen[BK / 4];
      bool any = false;
      UNROLL
      for (int e = 0; e < BK / 4; e++) {
        const int j = e / 2 * 8 + column + e % 2;
        seen[e] = row.touches(chunk_memory.places[j]) || (EXTRA && chunk_memory.tokens[j] < -1);
        any = any || seen[e];
      }
      if (!simd_any(any)) continue;
      Matrix<float> scores[BK / 8], slopes[BK / 8];
      multiply<T, D, BK>(scores, row_parts, chunk_memory.column);
      multiply<T, DV, BK>(slopes, side_parts, chunk_memory.side);
      Matrix<T> weights[BK / 8], gradients[BK / 8];
      UNROLL
      for (int e = 0; e < BK / 4; e++) {
        const int j = e / 2 * 8 + column + e % 2;
        const float2 known = INVERSE ? chunk_memory.known[j] : row_known;
        float score = scores[e / 2].thread_elements()[e % 2] * unit - known.x;
        if (BIAS) {
          const bool has_bias = seen[e] && (!EXTRA || chunk_memory.tokens[j] >= 0);
          if (has_bias) score += M_LOG2E_F * row_bias[chunk_memory.relatives[j]];
        }
        const float weight = exp2(seen[e] ? score : HIDDEN);
        weights[e / 2].thread_elements()[e % 2] = T(weight);
        gradients[e / 2].thread_elements()[e % 2] = T(weight * (slopes[e / 2].thread_elements()[e % 2] - known.y));
      }
      if (INVERSE) accumulate<T, DV, BK>(side_sums, weights, chunk_memory.side);
      accumulate<T, D, BK>(sums, gradients, chunk_memory.column);
    }
  }
  if (!row.real) return;
  store_rows<T, D>(grad_rows + place * D, sums, column, scale);
  if (INVERSE) store_rows<T, DV>(grad_sides + place * DV, side_sums, column, 1.0f);
}

// Declares the threadgroup memory of a kernel, which the language allows in kernels only.
#define CHUNK(T, D, DV)                                                         \
  threadgroup vec<T, 4> column_memory[chunk<T, D, DV>() * stride_of<T>(D) / 4]; \
  threadgroup vec<T, 4> side_memory[chunk<T, D, DV>() * stride_of<T>(DV) / 4];  \
  threadgroup uint places[chunk<T, D, DV>()];                                   \
  threadgroup int tokens[chunk<T, D, DV>()];                                    \
  threadgroup int relatives[chunk<T, D, DV>()];                                 \
  threadgroup float2 known[chunk<T, D, DV>()];                                  \
  const Chunk<T> chunk_memory = {reinterpret_cast<threadgroup T*>(column_memory), \
                                 reinterpret_cast<threadgroup T*>(side_memory),   \
                                 places, tokens, relatives, known};

template <typename T, int ND, int D, int DV, bool BIAS, bool EXTRA, bool DOCUMENTS>
[[kernel, max_total_threads_per_threadgroup(128)]] void attend_back_query(
    const device T* query [[buffer(0)]], const device T* key [[buffer(1)]], const device T* value [[buffer(2)]],
    const device float* bias [[buffer(3)]], const device T* extra_key [[buffer(4)]],
    const device T* extra_value [[buffer(5)]], const device T* grad_out [[buffer(6)]],
    const device float* lse [[buffer(7)]], const device float* delta [[buffer(8)]],
    device T* grad_query [[buffer(9)]], const device int4* table [[buffer(10)]],
    const SPACE Geometry<ND>* geometries [[buffer(11)]], constant float& scale [[buffer(12)]],
    uint3 group [[threadgroup_position_in_grid]], uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  CHUNK(T, D, DV)
  attend_back_tile<T, ND, D, DV, BIAS, EXTRA, DOCUMENTS, false>(query, grad_out, key, value, bias, extra_key, extra_value, lse,
                                                     delta, grad_query, grad_query, table, geometries, scale, chunk_memory,
                                                     group, simd, lane);
}

template <typename T, int ND, int D, int DV, bool BIAS, bool DOCUMENTS>
[[kernel, max_total_threads_per_threadgroup(128)]] void attend_back_key(
    const device T* query [[buffer(0)]], const device T* key [[buffer(1)]], const device T* value [[buffer(2)]],
    const device float* bias [[buffer(3)]], const device T* grad_out [[buffer(4)]],
    const device float* lse [[buffer(5)]], const device float* delta [[buffer(6)]],
    device T* grad_key [[buffer(7)]], device T* grad_value [[buffer(8)]], const device int4* table [[buffer(9)]],
    const SPACE Geometry<ND>* geometries [[buffer(10)]], constant float& scale [[buffer(11)]],
    uint3 group [[threadgroup_position_in_grid]], uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  CHUNK(T, D, DV)
  attend_back_tile<T, ND, D, DV, BIAS, false, DOCUMENTS, true>(key, value, query, grad_out, bias, query, grad_out, lse, delta,
                                                    grad_key, grad_value, table, geometries, scale, chunk_memory, group, simd,
                                                    lane);
}
