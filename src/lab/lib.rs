//! The laboratory: what questions the simulator, and a head and a load that stand in for Ray and its users.
pub mod ablation;
pub mod calibration;
pub mod emulator;
mod hindsight;
pub mod identify;
pub mod incident;
pub mod load;
pub mod model_fit;
pub mod monte_carlo;
pub mod page;
pub mod report;
