use tightbeam::{Handlers, Message, Reply};

fn handler(_: &mut (), message: Message<'_>, reply: Reply<'_>) {
    // What a handler is given can answer and send, but neither call nor poll.
    let answer = reply.call(2, message.bytes());
    reply.poll(1);
    drop(answer);
}

fn main() {
    let _ = Handlers::new().on(1, handler);
}
