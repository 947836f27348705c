//! The conformance suite on every file layer.
