// Every operation as its definition reads: one thread a row, or an element of one. What the tiled kernels must equal.

// Softmax of scores that come one by one: `sum` and `out` are relative to the largest score so far. Powers of two.
template <typename T, int DV>
struct Softmax {
  float largest = -1.0e30f;
  float sum = 0;
  float out[DV];

  Softmax() {
    for (int d = 0; d < DV; d++) out[d] = 0;
  }

  void add(float score, const device T* value) {
    const float before = largest;
    largest = max(largest, score);
    const float kept = exp2(before - largest);
    const float weight = exp2(score - largest);
    sum = sum * kept + weight;
    for (int d = 0; d < DV; d++) out[d] = fma(weight, float(value[d]), out[d] * kept);
  }
};

template <typename T, int ND, int D, int DV, bool BIAS, bool EXTRA, bool DOCUMENTS>
[[kernel]] void attend_plain(
    const device T* query [[buffer(0)]], const device T* key [[buffer(1)]], const device T* value [[buffer(2)]],
    const device float* bias [[buffer(3)]], const device T* extra_key [[buffer(4)]],
    const device T* extra_value [[buffer(5)]], device T* out [[buffer(6)]], device float* lse [[buffer(7)]],
    const device int4* table [[buffer(8)]], const SPACE Geometry<ND>* geometries [[buffer(9)]],
    constant float& scale [[buffer(10)]], uint3 at [[thread_position_in_grid]]) {
  const Document<ND> document = document_of_row<ND, DOCUMENTS>(geometries, table, at.x, at.z);
  const SPACE Geometry<ND>& g = *document.geometry;
  const int row = document.index, head = at.y, kv_head = head / (g.heads / g.kv_heads);
  const float unit = scale * M_LOG2E_F;
  const long place = vector_at(document.rows, token_of(g, row), g.heads, head, 1);
  const device T* x = query + place * D;
  Softmax<T, DV> softmax;
  for (Walk<ND> walk(g, table, row); walk.more; walk.next()) {
    const int token = walk.column(g);
    float score = unit * product<T, D>(x, key + vector_at(document.columns, token, g.kv_heads, kv_head, D));
    if (BIAS) score += M_LOG2E_F * bias[head * g.relative_count + walk.relative(g)];
    softmax.add(score, value + vector_at(document.columns, token, g.kv_heads, kv_head, DV));
  }
  if (EXTRA) {
    for (int token = 0; token < g.extra; token++) {
      const device T* y = extra_key + vector_at(document.extras, token, g.kv_heads, kv_head, D);
      softmax.add(unit * product<T, D>(x, y),
                  extra_value + vector_at(document.extras, token, g.kv_heads, kv_head, DV));
    }
  }
  for (int d = 0; d < DV; d++) out[place * DV + d] = T(softmax.out[d] / softmax.sum);
  lse[place] = (softmax.largest + log2(softmax.sum)) * M_LN2_F;
}

// What backward subtracts from the products of `grad_out` with values: sum(out * grad_out) - grad_lse, a SIMD-group a row.
template <typename T, int DV>
[[kernel]] void delta(const device T* out [[buffer(0)]], const device T* grad_out [[buffer(1)]],
                      const device float* grad_lse [[buffer(2)]], device float* result [[buffer(3)]],
                      uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
  const long row = group.x;
  float sum = 0;
  for (int d = lane; d < DV; d += 32) sum = fma(float(out[row * DV + d]), float(grad_out[row * DV + d]), sum);
  sum = simd_sum(sum);
  if (lane == 0) result[row] = sum - grad_lse[row];
}

// One pair of a query and a key: its weight, and the gradient of its score.
template <typename T, int D, int DV>
METAL_FUNC float2 slope(const device T* query, const device T* key, const device T* value,
                        const device T* grad_out, float unit, float bias, float lse, float delta) {
  const float score = fma(unit, product<T, D>(query, key), M_LOG2E_F * (bias - lse));
  const float weight = exp2(score);
  return float2(weight, weight * (product<T, DV>(grad_out, value) - delta));
}

template <typename T, int ND, int D, int DV, bool BIAS, bool EXTRA, bool DOCUMENTS>
[[kernel]] void attend_back_query_plain(
    const device T* query [[buffer(0)]], const device T* key [[buffer(1)]], const device T* value [[buffer(2)]],
    const device float* bias [[buffer(3)]], const device T* extra_key [[buffer(4)]],
    const device T* extra_value [[buffer(5)]], const device T* grad_out [[buffer(6)]],
    const device float* lse [[buffer(7)]], const device float* delta [[buffer(8)]],
    device T* grad_query [[buffer(9)]], const device int4* table [[buffer(10)]],
    const SPACE Geometry<ND>* geometries [[buffer(11)]], constant float& scale [[buffer(12)]],
    uint3 at [[thread_position_in_grid]]) {
  const Document<ND> document = document_of_row<ND, DOCUMENTS>(geometries, table, at.x, at.z);
  const SPACE Geometry<ND>& g = *document.geometry;
  const int row = document.index, head = at.y, kv_head = head / (g.heads / g.kv_heads);
  const float unit = scale * M_LOG2E_F;
  const long place = vector_at(document.rows, token_of(g, row), g.heads, head, 1);
  float sum[D];
  for (int d = 0; d < D; d++) sum[d] = 0;
  for (Walk<ND> walk(g, table, row); walk.more; walk.next()) {
    const long token = vector_at(document.columns, walk.column(g), g.kv_heads, kv_head, 1);
    const float added = BIAS ? bias[head * g.relative_count + walk.relative(g)] : 0;
    const float gradient = slope<T, D, DV>(query + place * D, key + token * D, value + token * DV,
                                           grad_out + place * DV, unit, added, lse[place], delta[place]).y;
    for (int d = 0; d < D; d++) sum[d] = fma(gradient, float(key[token * D + d]), sum[d]);
  }
  if (EXTRA) {
    for (int i = 0; i < g.extra; i++) {
      const long token = vector_at(document.extras, i, g.kv_heads, kv_head, 1);
      const float gradient = slope<T, D, DV>(query + place * D, extra_key + token * D, extra_value + token * DV,
                                             grad_out + place * DV, unit, 0, lse[place], delta[place]).y;
      for (int d = 0; d < D; d++) sum[d] = fma(gradient, float(extra_key[token * D + d]), sum[d]);
    }
  }
  for (int d = 0; d < D; d++) grad_query[place * D + d] = T(scale * sum[d]);
}

// Rows are keys.
template <typename T, int ND, int D, int DV, bool BIAS, bool DOCUMENTS>
[[kernel]] void attend_back_key_plain(
    const device T* query [[buffer(0)]], const device T* key [[buffer(1)]], const device T* value [[buffer(2)]],
    const device float* bias [[buffer(3)]], const device T* grad_out [[buffer(4)]],
    const device float* lse [[buffer(5)]], const device float* delta [[buffer(6)]],
    device T* grad_key [[buffer(7)]], device T* grad_value [[buffer(8)]], const device int4* table [[buffer(9)]],
    const SPACE Geometry<ND>* geometries [[buffer(10)]], constant float& scale [[buffer(11)]],
    uint3 at [[thread_position_in_grid]]) {
  const Document<ND> document = document_of_row<ND, DOCUMENTS>(geometries, table, at.x, at.z);
  const SPACE Geometry<ND>& g = *document.geometry;
  const int row = document.index, kv_head = at.y, group = g.heads / g.kv_heads;
  const float unit = scale * M_LOG2E_F;
  const long token = vector_at(document.rows, token_of(g, row), g.kv_heads, kv_head, 1);
  float key_sum[D], value_sum[DV];
  for (int d = 0; d < D; d++) key_sum[d] = 0;
  for (int d = 0; d < DV; d++) value_sum[d] = 0;
  for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
    for (Walk<ND> walk(g, table, row); walk.more; walk.next()) {
      const long place = vector_at(document.columns, walk.column(g), g.heads, head, 1);
      const float added = BIAS ? bias[head * g.relative_count + walk.relative(g)] : 0;
      const float2 pair = slope<T, D, DV>(query + place * D, key + token * D, value + token * DV,
                                          grad_out + place * DV, unit, added, lse[place], delta[place]);
      for (int d = 0; d < D; d++) key_sum[d] = fma(pair.y, float(query[place * D + d]), key_sum[d]);
      for (int d = 0; d < DV; d++) value_sum[d] = fma(pair.x, float(grad_out[place * DV + d]), value_sum[d]);
    }
  }
  for (int d = 0; d < D; d++) grad_key[token * D + d] = T(scale * key_sum[d]);
  for (int d = 0; d < DV; d++) grad_value[token * DV + d] = T(value_sum[d]);
}
