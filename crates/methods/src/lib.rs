//! Backward-compatible training methods as Candle modules, with neighborhood consensus first.
