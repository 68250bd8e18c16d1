// Sweeps over the classes of a row (cpu/row_io-inl.h), vector by vector. Included once per instruction set.

// body(i, place) for the vector of classes at each i.
template <class A, class Body>
KD_INLINE void each_vector(int64_t classes, const Body& body) {
  const int64_t split = body_classes(classes);
  for (int64_t i = 0; i < split; i += Simd<A>::lanes) body(i, InBody{});
  for (int64_t i = split; i < classes; i += Simd<A>::lanes) body(i, InTail{});
}

// Four running maxima, so that one comparison need not wait for the last.
template <class A>
KD_INLINE A max_classes(const Line<A>& row, int64_t classes) {
  constexpr int64_t lanes = Simd<A>::lanes;
  const Vec<A> none = splat(-std::numeric_limits<A>::infinity());
  Vec<A> largest[4] = {none, none, none, none};
  const auto raise = [](Vec<A>& most, Vec<A> v) { most = select(v > most, v, most); };
  const int64_t blocks = body_classes(classes) / (4 * lanes) * (4 * lanes);
  for (int64_t i = 0; i < blocks; i += 4 * lanes)
    for (int j = 0; j < 4; ++j) raise(largest[j], load(row.body + i + j * lanes));
  for (int64_t i = blocks; i < body_classes(classes); i += lanes) raise(largest[0], load(row.body + i));
  for (int64_t i = body_classes(classes); i < classes; i += lanes) raise(largest[1], load(row.tail + i));
  raise(largest[0], largest[1]);
  raise(largest[2], largest[3]);
  raise(largest[0], largest[2]);
  return max_lanes<A>(largest[0]);
}

template <class A>
KD_INLINE void fill_zero(const Line<A>& row, int64_t classes) {
  each_vector<A>(classes, [&](int64_t i, auto place) { store(row.in(place) + i, Vec<A>{}); });
}

// body(i, place, part) adds what the vector of classes at i contributes to each of `count` sums.
template <class A, int count, class Body>
KD_INLINE void sum_classes(int64_t classes, A (&sums)[count], const Body& body) {
  constexpr int64_t lanes = Simd<A>::lanes, block = 64 * lanes;
  const int64_t split = body_classes(classes);
  Vec<A> total[count] = {};
  for (int64_t begin = 0; begin < split; begin += block) {
    const int64_t end = begin + block < split ? begin + block : split;
    Vec<A> part[count] = {};
    for (int64_t i = begin; i < end; i += lanes) body(i, InBody{}, part);
    for (int j = 0; j < count; ++j) total[j] += part[j];
  }
  for (int64_t i = split; i < classes; i += lanes) body(i, InTail{}, total);
  for (int j = 0; j < count; ++j) sums[j] = sum_lanes<A>(total[j]);
}
