//! Texts for people in messages to the supervisor.

/// Longest message text, bytes; the control plane gets half of it.
const MAX_TEXT_BYTES: usize = 4096;

/// Cuts a text of foreign length, between characters.
pub(crate) fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(cut("short".into()), "short");
        let long = cut("\u{e9}".repeat(MAX_TEXT_BYTES) + "x");
        assert_eq!(long, "\u{e9}".repeat(MAX_TEXT_BYTES / 2));
        assert_eq!(cut(format!("x{long}")).len(), MAX_TEXT_BYTES - 1);
    }
}
