//! The grammar of a `.env` file: python-dotenv's regular expressions (`dotenv/parser.py`) by hand.

/// A name with its value, if there is an `=`. The value is not expanded yet.
type Statement = (String, Option<String>);

/// Stands for a statement that could not be read.
struct Unread;

/// Iterates over the statements of a text whose lines end in `\n`. The error is the line, from 1, in
/// which a statement starts that could not be read; the rest of the line where it went wrong is skipped.
pub(super) struct Statements<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Statements<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text, line: 1 }
    }

    /// The next statement; `None` for a comment.
    fn statement(&mut self) -> Result<Option<Statement>, Unread> {
        if let Some(after) = self.rest.strip_prefix("export")
            && after.starts_with(is_blank)
        {
            self.rest = after.trim_start_matches(is_blank);
        }
        let name = self.name()?;
        self.skip(is_blank);
        let value = match self.rest.strip_prefix('=') {
            Some(after) => {
                self.rest = after;
                self.skip(is_blank);
                Some(self.value()?)
            }
            None => None,
        };
        self.end_of_line()?;
        Ok(name.map(|name| (name, value)))
    }

    fn name(&mut self) -> Result<Option<String>, Unread> {
        if self.rest.starts_with('#') {
            return Ok(None);
        }
        let name = if let Some(quoted) = self.rest.strip_prefix('\'') {
            let (name, after) = quoted.split_once('\'').ok_or(Unread)?;
            self.rest = after;
            name
        } else {
            self.take_until(|character| is_space(character) || character == '=' || character == '#')
        };
        if name.is_empty() { Err(Unread) } else { Ok(Some(name.to_owned())) }
    }

    fn value(&mut self) -> Result<String, Unread> {
        match self.rest.chars().next() {
            Some('\'') => self
                .quoted('\'')
                .map(|raw| unescape(raw, |escaped| matches!(escaped, '\\' | '\'').then_some(escaped))),
            Some('"') => self.quoted('"').map(|raw| unescape(raw, double_quote_escape)),
            _ => Ok(without_comment(self.take_until(|character| character == '\n')).to_owned()),
        }
    }

    /// What is between the quote that is next and the one that ends the value.
    fn quoted(&mut self, quote: char) -> Result<&'a str, Unread> {
        let body = &self.rest[1..];
        let mut end = None;
        for (at, _) in body.match_indices(quote) {
            // Whether a backslash is before the quote is all that counts, not whether that is escaped
            // itself. Such a quote ends the value only if no other does: so the expression backtracks.
            end = Some(at);
            if !body[..at].ends_with('\\') {
                break;
            }
        }
        let end = end.ok_or(Unread)?;
        self.rest = &body[end + 1..];
        Ok(&body[..end])
    }

    fn end_of_line(&mut self) -> Result<(), Unread> {
        self.skip(is_blank);
        if self.rest.starts_with('#') {
            self.take_until(|character| character == '\n');
        }
        if self.rest.is_empty() {
            return Ok(());
        }
        self.rest = self.rest.strip_prefix('\n').ok_or(Unread)?;
        Ok(())
    }

    fn skip(&mut self, skipped: fn(char) -> bool) {
        self.rest = self.rest.trim_start_matches(skipped);
    }

    fn take_until(&mut self, stops: fn(char) -> bool) -> &'a str {
        let (taken, rest) = self.rest.split_at(self.rest.find(stops).unwrap_or(self.rest.len()));
        self.rest = rest;
        taken
    }
}

impl Iterator for Statements<'_> {
    type Item = Result<Statement, usize>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let before = self.rest;
            self.skip(is_space);
            self.line += lines(before, self.rest);
            if self.rest.is_empty() {
                return None;
            }
            let (start, line) = (self.rest, self.line);
            let statement = self.statement();
            if statement.is_err() {
                self.take_until(|character| character == '\n');
            }
            self.line += lines(start, self.rest);
            match statement {
                Ok(None) => {}
                Ok(Some(statement)) => return Some(Ok(statement)),
                Err(Unread) => return Some(Err(line)),
            }
        }
    }
}

/// Line ends in what was read between `before` and `after`.
fn lines(before: &str, after: &str) -> usize {
    before[..before.len() - after.len()].matches('\n').count()
}

/// White space as Python counts it, which includes four separators that Unicode leaves out.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

fn is_blank(character: char) -> bool {
    is_space(character) && character != '\n'
}

/// A `#` starts a comment only after white space; at the start of a value it is part of the value.
fn without_comment(value: &str) -> &str {
    let comment = value.match_indices('#').find(|(at, _)| value[..*at].ends_with(is_space));
    value[..comment.map_or(value.len(), |(at, _)| at)].trim_end_matches(is_space)
}

fn double_quote_escape(escaped: char) -> Option<char> {
    Some(match escaped {
        '\\' | '\'' | '"' => escaped,
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        _ => return None,
    })
}

/// Other escapes stay as they are, backslash and all.
fn unescape(raw: &str, escape: fn(char) -> Option<char>) -> String {
    let mut text = String::with_capacity(raw.len());
    let mut characters = raw.chars().peekable();
    while let Some(character) = characters.next() {
        let escaped = characters.peek().copied().filter(|_| character == '\\').and_then(escape);
        if escaped.is_some() {
            characters.next();
        }
        text.push(escaped.unwrap_or(character));
    }
    text
}
