//! One Rust file as words with their lines, and what surrounds each of them.
//!
//! Works on tokens, so it sees into macros and is not misled by comments and strings. Knows no types.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A word or sign of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) text: String,
    pub(crate) line: usize,
    /// Inside `loop`, `while` or `for`.
    pub(crate) in_loop: bool,
    /// Inside something under `#[cfg(test)]` or `#[test]`.
    pub(crate) in_test: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) first_line: usize,
    pub(crate) last_line: usize,
    pub(crate) in_test: bool,
}

impl Function {
    pub(crate) fn lines(&self) -> usize {
        self.last_line - self.first_line + 1
    }
}

#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) words: Vec<Word>,
    pub(crate) functions: Vec<Function>,
    /// First and last lines of items that only tests have.
    pub(crate) test_ranges: Vec<(usize, usize)>,
    /// Names of `#[cfg(test)] mod name;`.
    pub(crate) test_modules: Vec<String>,
    /// Names of all modules declared here.
    pub(crate) modules: Vec<(String, usize)>,
}

#[derive(Clone, Copy, Default)]
struct Surroundings {
    in_loop: bool,
    in_test: bool,
}

/// What the tokens seen so far say about the braces to come.
#[derive(Default)]
struct Pending {
    /// Line of the attribute that makes the next item test code.
    test_since: Option<usize>,
    function: Option<(String, usize)>,
    is_loop: bool,
    is_impl: bool,
}

impl Scan {
    pub(crate) fn of(text: &str) -> Result<Self, proc_macro2::LexError> {
        // A shebang line is no Rust.
        let text = if text.starts_with("#!") && !text.starts_with("#![") {
            format!("//{text}")
        } else {
            text.to_owned()
        };
        let mut scan = Self::default();
        scan.walk(text.parse()?, Surroundings::default());
        Ok(scan)
    }

    fn walk(&mut self, stream: TokenStream, around: Surroundings) {
        let tokens: Vec<TokenTree> = stream.into_iter().collect();
        let mut pending = Pending::default();
        for (index, token) in tokens.iter().enumerate() {
            let line = token.span().start().line;
            match token {
                TokenTree::Ident(word) => {
                    self.ident(&word.to_string(), line, &tokens, index, &mut pending, around);
                    self.push(word.to_string(), line, around);
                }
                TokenTree::Punct(sign) => {
                    if sign.as_char() == ';' {
                        pending = Pending::default();
                    }
                    self.push(sign.to_string(), line, around);
                }
                TokenTree::Literal(_) => {}
                TokenTree::Group(group) => {
                    let last_line = group.span_close().end().line;
                    let is_attribute =
                        group.delimiter() == Delimiter::Bracket && is_sign(&tokens, index, 1, '#');
                    if is_attribute && makes_test(&group.stream()) {
                        pending.test_since = Some(line);
                    }
                    let inner = if group.delimiter() == Delimiter::Brace {
                        self.body(&mut pending, last_line, around)
                    } else {
                        around
                    };
                    let (open, close) = signs(group.delimiter());
                    self.push(open.to_owned(), line, around);
                    self.walk(group.stream(), inner);
                    self.push(close.to_owned(), last_line, around);
                }
            }
        }
    }

    fn ident(
        &mut self,
        word: &str,
        line: usize,
        tokens: &[TokenTree],
        index: usize,
        pending: &mut Pending,
        around: Surroundings,
    ) {
        let next = tokens.get(index + 1);
        match (word, next) {
            ("fn", Some(TokenTree::Ident(name))) => pending.function = Some((name.to_string(), line)),
            ("mod", Some(TokenTree::Ident(name))) => {
                self.modules.push((name.to_string(), line));
                let is_elsewhere = is_sign_at(tokens, index + 2, ';');
                if is_elsewhere && (pending.test_since.is_some() || around.in_test) {
                    self.test_modules.push(name.to_string());
                }
            }
            ("impl", _) => pending.is_impl = true,
            ("loop" | "while", _) => pending.is_loop = true,
            // Not `impl X for Y`, not `for<'a>`.
            ("for", _) if !pending.is_impl && !is_sign_at(tokens, index + 1, '<') => pending.is_loop = true,
            _ => {}
        }
    }

    /// A brace opens: what was announced before it is now known to have this body.
    fn body(&mut self, pending: &mut Pending, last_line: usize, around: Surroundings) -> Surroundings {
        let Pending { test_since, function, is_loop, .. } = std::mem::take(pending);
        let in_test = around.in_test || test_since.is_some();
        if let Some(first_line) = test_since {
            self.test_ranges.push((first_line, last_line));
        }
        let is_function = function.is_some();
        if let Some((name, first_line)) = function {
            self.functions.push(Function { name, first_line, last_line, in_test });
        }
        // What is defined inside a loop does not run in it by that alone.
        Surroundings { in_loop: (around.in_loop || is_loop) && !is_function, in_test }
    }

    fn push(&mut self, text: String, line: usize, around: Surroundings) {
        self.words.push(Word { text, line, in_loop: around.in_loop, in_test: around.in_test });
    }

    /// Every place where these words follow one another.
    pub(crate) fn find<'a>(&'a self, words: &'a [&'a str]) -> impl Iterator<Item = &'a Word> {
        let matches =
            move |window: &&[Word]| window.iter().zip(words).all(|(word, wanted)| word.text == *wanted);
        self.words.windows(words.len()).filter(matches).map(|window| &window[0])
    }

    pub(crate) fn is_test_line(&self, line: usize) -> bool {
        self.test_ranges.iter().any(|(first, last)| (*first..=*last).contains(&line))
    }
}

fn signs(delimiter: Delimiter) -> (&'static str, &'static str) {
    match delimiter {
        Delimiter::Parenthesis => ("(", ")"),
        Delimiter::Brace => ("{", "}"),
        Delimiter::Bracket => ("[", "]"),
        Delimiter::None => ("", ""),
    }
}

fn is_sign_at(tokens: &[TokenTree], index: usize, sign: char) -> bool {
    matches!(tokens.get(index), Some(TokenTree::Punct(punct)) if punct.as_char() == sign)
}

fn is_sign(tokens: &[TokenTree], index: usize, back: usize, sign: char) -> bool {
    index.checked_sub(back).is_some_and(|index| is_sign_at(tokens, index, sign))
}

/// `#[test]`, `#[tokio::test(…)]`, `#[cfg(test)]`, `#[cfg(all(test, …))]`.
fn makes_test(attribute: &TokenStream) -> bool {
    let text = attribute.to_string().replace(' ', "");
    let path = text.split('(').next().unwrap_or_default();
    path == "test" || path.ends_with("::test") || text == "cfg(test)" || text.starts_with("cfg(all(test,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &str) -> Scan {
        Scan::of(text).unwrap()
    }

    #[test]
    fn functions_have_their_lengths() {
        let text =
            "trait T {\n  fn no_body();\n}\nimpl T for X {\n  fn a() {\n    b();\n  }\n}\ntype F = fn(u8);\n";
        let functions = scan(text).functions;
        assert_eq!(functions.len(), 1);
        assert_eq!((functions[0].name.as_str(), functions[0].lines()), ("a", 3));
    }

    #[test]
    fn test_items_are_ranges() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n  #[test]\n  fn b() { x(); }\n}\n#[tokio::test]\nasync fn c() {}\n";
        let scan = scan(text);
        assert!(!scan.is_test_line(1) && scan.is_test_line(5) && scan.is_test_line(8));
        assert!(scan.find(&["x", "("]).all(|word| word.in_test));
        assert_eq!(
            scan.functions.iter().map(|function| function.in_test).collect::<Vec<_>>(),
            [false, true, true]
        );
    }

    #[test]
    fn loops_are_seen_also_in_macros() {
        let text = "fn a() { sleep(1); loop { select! { x => sleep(2) } } }\nimpl A for B { fn c() { sleep(3) } }\n\
                    fn d() { for x in y { fn e() { sleep(4) } } }\n";
        let scan = scan(text);
        let in_loop: Vec<_> = scan.find(&["sleep", "("]).map(|word| word.in_loop).collect();
        assert_eq!(in_loop, [false, true, false, false]);
    }
}
