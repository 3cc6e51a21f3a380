use tightbeam::{Message, Reply};

fn handler(_: &mut (), message: Message<'_>, reply: Reply<'_>) {
    let bytes = message.bytes();
    reply.send(bytes);
    reply.send(bytes);
}

fn main() {
    let _ = tightbeam::Handlers::new().on(1, handler);
}
