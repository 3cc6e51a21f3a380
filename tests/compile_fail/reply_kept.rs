use tightbeam::{Handlers, Message, Reply};

struct State {
    later: Option<Reply<'static>>,
}

fn keep(state: &mut State, _message: Message<'_>, reply: Reply<'_>) {
    state.later = Some(reply);
}

fn main() {
    let _ = Handlers::new().on(1, keep);
}
