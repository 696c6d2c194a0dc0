mod layers;
mod network;
mod random;
fn main() {}
