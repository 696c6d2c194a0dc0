//! Retrieval and compatibility metrics, as tables, CSV and SVG plots.
