use tightbeam::{Handlers, Message, Reply};

#[derive(Default)]
struct State {
    kept: Option<&'static [u8]>,
}

fn keep(state: &mut State, message: Message<'_>, _reply: Reply<'_>) {
    state.kept = Some(message.bytes());
}

fn main() {
    let _ = Handlers::new().on(1, keep);
}
