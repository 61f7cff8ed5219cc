//! Prints docs/configuration.md:
//!
//!     cargo run --example configuration > docs/configuration.md

#[path = "../tests/common/reference.rs"]
mod reference;

fn main() {
    print!("{}", reference::configuration());
}
