//! Composition: builds the parts, starts the producers, awaits the engine.
