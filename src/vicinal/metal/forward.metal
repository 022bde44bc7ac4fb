// Fused attention of a tile, with the softmax online and in powers of two. Sentinels are finite: fast math may assume that
// there are no infinities.
constant constexpr float LOWEST = -1.0e30f;  // below every score
constant constexpr float HIDDEN = -3.0e38f;  // so far below that its weight is zero

template <typename T, int ND, int D, int DV, bool BIAS, bool EXTRA, bool DOCUMENTS>
[[kernel, max_total_threads_per_threadgroup(128)]] void attend(
    const device T* query [[buffer(0)]], const device T* key [[buffer(1)]], const device T* value [[buffer(2)]],
    const device float* bias [[buffer(3)]], const device T* extra_key [[buffer(4)]],
    const device T* extra_value [[buffer(5)]], device T* out [[buffer(6)]], device float* lse [[buffer(7)]],
    const device int4* table [[buffer(8)]], const SPACE Geometry<ND>* geometries [[buffer(9)]],
    constant float& scale [[buffer(10)]], uint3 group [[threadgroup_position_in_grid]],
    uint simd [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  constexpr int BK = chunk<T, D, DV>(), PARTS = (DV + 7) / 8;
  threadgroup vec<T, 4> key_memory[BK * stride_of<T>(D) / 4];
  threadgroup vec<T, 4> value_memory[BK * stride_of<T>(DV) / 4];
  threadgroup uint places[BK];
  threadgroup int tokens[BK];
  threadgroup int relatives[BK];
  threadgroup T* keys = reinterpret_cast<threadgroup T*>(key_memory);
  threadgroup T* values = reinterpret_cast<threadgroup T*>(value_memory);

  const Document<ND> document = document_of_tile<ND, DOCUMENTS>(geometries, table, group, lane);
  const SPACE Geometry<ND>& g = *document.geometry;
  const int head = group.y, kv_head = head / (g.heads / g.kv_heads), column = lane_column(lane);
  const uint thread_index = simd * 32 + lane;
  const Tile<ND> tile(g, table, document.index, lane);
  const Row<ND> row(g, table, tile, simd, lane, false);
  const long place = vector_at(document.rows, row.token, g.heads, head, 1);
  const long first = vector_at(document.columns, 0, g.kv_heads, kv_head, 1);
  const long first_extra = EXTRA ? vector_at(document.extras, 0, g.kv_heads, kv_head, 1) : 0;
  const device float* row_bias = bias + long(head) * g.relative_count + row.relative;
  Matrix<T> rows[(D + 7) / 8];
  load_rows<T, D>(rows, query + place * D, column);
  Matrix<float> sums[PARTS];
  for (int i = 0; i < PARTS; i++) sums[i] = Matrix<float>(0.0f);
  float largest = LOWEST, total = 0;
  const float unit = scale * M_LOG2E_F;

  for (int start = 0; start < tile.columns + (EXTRA ? g.extra : 0); start += BK) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_index < uint(BK)) {
      const Column c = column_at<ND>(g, table, tile, start + thread_index, false);
      places[thread_index] = c.place;
      tokens[thread_index] = c.token;
      if (BIAS) relatives[thread_index] = c.relative;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    stage<T, D, BK>(keys, key + first * D, extra_key + first_extra * D, tokens, g.kv_heads * D, thread_index);
    stage<T, DV, BK>(values, value + first * DV, extra_value + first_extra * DV, tokens, g.kv_heads * DV,
                     thread_index);
    threadgroup_barrier(mem_flags::mem_threadgroup);

    bool seen[BK / 4];
    bool any = false;
    UNROLL
    for (int e = 0; e < BK / 4; e++) {
      const int j = e / 2 * 8 + column + e % 2;
      seen[e] = row.touches(places[j]) || (EXTRA && tokens[j] < -1);
      any = any || seen[e];
    }
    if (!simd_any(any)) continue;
    Matrix<float> scores[BK / 8];
    multiply<T, D, BK>(scores, rows, keys);
    float top = largest;
    UNROLL
    for (int e = 0; e < BK / 4; e++) {
      const int j = e / 2 * 8 + column + e % 2;
      float score = scores[e / 2].thread_elements()[e % 2] * unit;
      if (BIAS) {
        if (seen[e] && (!EXTRA || tokens[j] >= 0)) score += M_LOG2E_F * row_bias[relatives[j]];
      }
      score = seen[e] ? score : HIDDEN;
      scores[e / 2].thread_elements()[e % 2] = score;
      top = max(top, score);
    }
    // The four lanes of a row differ in these bits.
    top = max(top, simd_shuffle_xor(top, ushort(1)));
    top = max(top, simd_shuffle_xor(top, ushort(8)));
    const float kept = exp2(largest - top);
    largest = top;
    float chunk_total = 0;
    Matrix<T> weights[BK / 8];
    UNROLL
    for (int e = 0; e < BK / 4; e++) {
      const float weight = exp2(scores[e / 2].thread_elements()[e % 2] - top);
      chunk_total += weight;
      weights[e / 2].thread_elements()[e % 2] = T(weight);
    }
    total = total * kept + chunk_total;
    UNROLL
    for (int i = 0; i < PARTS; i++) sums[i].thread_elements() *= kept;
    accumulate<T, DV, BK>(sums, weights, values);
  }
  total += simd_shuffle_xor(total, ushort(1));
  total += simd_shuffle_xor(total, ushort(8));
  if (!row.real) return;
  store_rows<T, DV>(out + place * DV, sums, column, 1.0f / total);
  if (column == 0) lse[place] = (largest + log2(total)) * M_LN2_F;
}
