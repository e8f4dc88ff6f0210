"""Operations, sagas, allocations, claims, quota counters and placement."""
