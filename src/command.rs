//! The commands for people and for fleeting's tools, one module each. `main` reads the command line and calls them; a
//! plugin that serves runs none of this.

pub mod advice;
pub mod bootstrap;
pub mod check;
pub mod clean;
mod life;
pub mod list;
pub mod output;
pub mod runner;

pub use life::run;
