//! Reads Rust source well enough to ask who names what: no parser, but strings, comments,
//! characters, braces, nested imports, inline modules and test code are told apart.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// One source file.
#[derive(Debug)]
pub(crate) struct Source {
    /// Its path, for people.
    pub(crate) name: String,
    /// Its module path below the crate; empty for the root.
    pub(crate) module: Vec<String>,
    raw_lines: usize,
    /// The text with comments and the contents of literals blanked.
    code: String,
    /// `code` with test code blanked as well.
    own: String,
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) line: usize,
    pub(crate) lines: usize,
}

/// Every `.rs` file below a directory; files that are modules for tests only have no code of
/// their own.
pub(crate) fn sources(dir: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    walk(dir, &mut Vec::new(), &mut found);
    let for_tests: BTreeSet<Vec<String>> = found.iter().flat_map(Source::test_modules).collect();
    for source in &mut found {
        let prefixes = (1..=source.module.len()).map(|n| source.module[..n].to_vec());
        if prefixes.into_iter().any(|p| for_tests.contains(&p)) {
            source.own.clear();
        }
    }
    found
}

fn walk(dir: &Path, module: &mut Vec<String>, found: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        if stem == "target" {
            continue; // what another workspace below has built
        }
        if path.is_dir() {
            module.push(stem);
            walk(&path, module, found);
            module.pop();
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            let mut own = module.clone();
            own.extend((!matches!(stem.as_str(), "mod" | "lib" | "main")).then_some(stem));
            found.push(Source::new(path.display().to_string(), own, &text));
        }
    }
}

impl Source {
    pub(crate) fn new(name: String, module: Vec<String>, text: &str) -> Self {
        let code = blank_literals(text);
        let own = blank_tests(&code);
        Self { name, module, raw_lines: text.lines().count(), code, own }
    }

    pub(crate) fn lines(&self) -> usize {
        self.raw_lines
    }

    /// All of the code, tests included; literals and comments are blank.
    pub(crate) fn all_code(&self) -> &str {
        &self.code
    }

    /// Functions outside of test code.
    pub(crate) fn functions(&self) -> Vec<Function> {
        functions(&self.own)
    }

    /// Functions, those of tests included.
    pub(crate) fn all_functions(&self) -> Vec<Function> {
        functions(&self.code)
    }

    /// Modules that are declared for tests only and live in files of their own.
    fn test_modules(&self) -> Vec<Vec<String>> {
        let starts = self.code.match_indices("#[cfg(test)]");
        let declared = starts.filter_map(|(at, attribute)| {
            let mut rest = self.code[at + attribute.len()..].trim_start();
            while let Some((_, behind)) = rest.strip_prefix("#[").and_then(|r| r.split_once(']')) {
                rest = behind.trim_start();
            }
            let rest = rest.strip_prefix("pub(crate)").unwrap_or(rest).trim_start();
            let name = rest.strip_prefix("mod ")?.split_once(';')?.0.trim();
            name.chars().all(is_ident).then(|| [&self.module[..], &[name.to_owned()]].concat())
        });
        declared.collect()
    }

    /// Absolute module paths of everything that is named through `crate`, `super`, `self` or a
    /// child module, outside of tests.
    pub(crate) fn imports(&self, modules: &BTreeSet<Vec<String>>) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        for (at, word) in words(&self.own) {
            let rest = &self.own[at + word.len()..];
            let follows_path = self.own[..at].ends_with("::") || self.own[..at].ends_with('$');
            let mut base = match word {
                _ if follows_path => continue,
                "crate" => Vec::new(),
                "self" | "super" => self.module_at(at),
                "use" => {
                    let here = self.module_at(at);
                    let trees = tree(&here, rest.trim_start());
                    found.extend(trees.into_iter().filter(|t| {
                        t.len() > here.len() && modules.contains(&t[..=here.len()].to_vec())
                    }));
                    continue;
                }
                _ => continue,
            };
            let Some(mut rest) = rest.strip_prefix("::") else { continue };
            if word == "super" {
                base.pop();
                while let Some(further) = rest.strip_prefix("super::") {
                    base.pop();
                    rest = further;
                }
            }
            found.extend(tree(&base, rest));
        }
        found.sort();
        found.dedup();
        found
    }

    /// The module that a place of the file belongs to, inline modules included.
    fn module_at(&self, at: usize) -> Vec<String> {
        let mut module = self.module.clone();
        for (start, word) in words(&self.own[..at]) {
            if word != "mod" {
                continue;
            }
            let Some(open) = self.own[start..].find(['{', ';']).map(|n| start + n) else {
                continue;
            };
            if self.own[open..].starts_with('{') && open < at && at < close(&self.own, open) {
                module.push(self.own[start + 3..open].trim().to_owned());
            }
        }
        module
    }

    /// Whether code outside of tests names this: an identifier, `macro!`, or a path of `std`
    /// in any spelling.
    pub(crate) fn names(&self, what: &str) -> bool {
        if let Some((root, _)) = what.split_once("::") {
            let wanted: Vec<_> = what.split("::").map(str::to_owned).collect();
            let root_words = words(&self.own).filter(|(_, word)| *word == root);
            let mut paths = root_words.filter_map(|(at, word)| {
                let rest = self.own[at + word.len()..].strip_prefix("::")?;
                Some(tree(&[word.to_owned()], rest))
            });
            return paths.any(|found| found.iter().any(|p| p.starts_with(&wanted)));
        }
        let (ident, bang) = match what.strip_suffix('!') {
            Some(ident) => (ident, true),
            None => (what, false),
        };
        words(&self.own).any(|(at, word)| {
            word == ident && (!bang || self.own[at + word.len()..].starts_with('!'))
        })
    }

    /// Names of the structs, enums, traits and type aliases outside of tests.
    pub(crate) fn declared_types(&self) -> Vec<&str> {
        let all: Vec<_> = words(&self.own).map(|(_, word)| word).collect();
        let pairs = all.windows(2).filter(|w| matches!(w[0], "struct" | "enum" | "trait" | "type"));
        pairs.map(|w| w[1]).collect()
    }
}

fn is_ident(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Identifiers and numbers, with their offsets.
fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        at += code[at..].find(is_ident)?;
        let start = at;
        at += code[at..].find(|c| !is_ident(c)).unwrap_or(code.len() - at);
        Some((start, &code[start..at]))
    })
}

/// The paths of an import tree such as `a::{b, c::{d, self}, e as f}`, each behind `base`.
fn tree(base: &[String], text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    branch(base.to_vec(), text.as_bytes(), &mut 0, &mut found);
    found
}

fn branch(mut path: Vec<String>, text: &[u8], at: &mut usize, found: &mut Vec<Vec<String>>) {
    loop {
        skip_space(text, at);
        if text.get(*at) == Some(&b'{') {
            *at += 1;
            return list(&path, text, at, found);
        }
        let start = *at;
        while text.get(*at).is_some_and(|b| is_ident(char::from(*b))) {
            *at += 1;
        }
        let name = String::from_utf8_lossy(&text[start..*at]).into_owned();
        if !name.is_empty() && name != "self" {
            path.push(name);
        }
        if start == *at || !text[*at..].starts_with(b"::") {
            return found.push(path);
        }
        *at += 2;
    }
}

fn list(path: &[String], text: &[u8], at: &mut usize, found: &mut Vec<Vec<String>>) {
    while *at < text.len() {
        branch(path.to_vec(), text, at, found);
        while text.get(*at).is_some_and(|b| !b",}".contains(b)) {
            *at += 1;
        }
        *at += 1;
        if text.get(*at - 1) != Some(&b',') {
            return;
        }
        skip_space(text, at);
        if text.get(*at) == Some(&b'}') {
            *at += 1;
            return;
        }
    }
}

fn skip_space(text: &[u8], at: &mut usize) {
    while text.get(*at).is_some_and(u8::is_ascii_whitespace) {
        *at += 1;
    }
}

/// Offset behind the brace that closes the one at `open`.
fn close(code: &str, open: usize) -> usize {
    let mut depth = 0usize;
    for (n, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth <= 1 => return n + 1,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// Where an item's body opens or the item ends, outside of parentheses and brackets.
fn body(code: &str, from: usize) -> Option<usize> {
    let mut depth = 0i32;
    for (n, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' | b';' if depth == 0 => return Some(n),
            _ => {}
        }
    }
    None
}

fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    let all: Vec<_> = words(code).collect();
    for pair in all.windows(2) {
        let [(at, "fn"), (name_at, name)] = *pair else { continue };
        if !code[at + 2..name_at].trim().is_empty() {
            continue;
        }
        let Some(open) = body(code, name_at).filter(|n| code[*n..].starts_with('{')) else {
            continue;
        };
        let end = close(code, open);
        let count = |text: &str| text.bytes().filter(|b| *b == b'\n').count() + 1;
        let (line, lines) = (count(&code[..at]), count(&code[at..end]));
        found.push(Function { name: name.to_owned(), line, lines });
    }
    found
}

/// Blanks every item behind `#[cfg(test)]`.
fn blank_tests(code: &str) -> String {
    let mut own = code.to_owned();
    let attribute = "#[cfg(test)]";
    while let Some(at) = own.find(attribute) {
        let item = body(&own, at + attribute.len());
        let end = item
            .map_or(own.len(), |n| if own[n..].starts_with('{') { close(&own, n) } else { n + 1 });
        let blank: String = own[at..end].chars().map(blanked).collect();
        own.replace_range(at..end, &blank);
    }
    own
}

fn blanked(c: char) -> char {
    if c == '\n' { '\n' } else { ' ' }
}

/// Blanks comments and the contents of strings and characters; the result is ASCII, line for line
/// alike.
fn blank_literals(text: &str) -> String {
    let text: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let end = literal_end(&text, at);
        match end {
            Some(end) => out.extend(text[at..end].iter().copied().map(blanked)),
            None => out.push(if text[at].is_ascii() { text[at] } else { '?' }),
        }
        at = end.unwrap_or(at + 1);
    }
    out
}

/// Where the comment or literal that starts here ends; None when none does.
fn literal_end(text: &[char], at: usize) -> Option<usize> {
    let next = |n: usize| text.get(at + n).copied().unwrap_or(' ');
    let starts_word = at == 0 || !is_ident(text[at - 1]);
    match text[at] {
        '/' if next(1) == '/' => Some(seek(text, at, |rest| rest[0] == '\n')),
        '/' if next(1) == '*' => Some(block_comment_end(text, at)),
        '"' => Some(quoted_end(text, at + 1, '"')),
        '\'' if next(1) == '\\' => Some(quoted_end(text, at + 1, '\'')),
        '\'' if next(2) == '\'' => Some(at + 3),
        'r' if starts_word => raw_end(text, at + 1),
        'b' | 'c' if starts_word && next(1) == 'r' => raw_end(text, at + 2),
        _ => None,
    }
}

fn seek(text: &[char], from: usize, stop: impl Fn(&[char]) -> bool) -> usize {
    (from..text.len()).find(|n| stop(&text[*n..])).unwrap_or(text.len())
}

fn block_comment_end(text: &[char], from: usize) -> usize {
    let (mut at, mut depth) = (from, 0usize);
    while at < text.len() {
        match text[at..] {
            ['/', '*', ..] => (at, depth) = (at + 2, depth + 1),
            ['*', '/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted_end(text: &[char], from: usize, quote: char) -> usize {
    let mut at = from;
    while at < text.len() && text[at] != quote {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

fn raw_end(text: &[char], from: usize) -> Option<usize> {
    let hashes = text[from..].iter().take_while(|c| **c == '#').count();
    if text.get(from + hashes) != Some(&'"') {
        return None;
    }
    let mut ending = vec!['"'];
    ending.resize(hashes + 1, '#');
    let end = seek(text, from + hashes + 1, |rest| rest.starts_with(&ending));
    Some((end + ending.len()).min(text.len()))
}

#[test]
fn literals_and_comments_are_blanked_and_lines_kept() {
    let text = "a /* x /* y */ z */ \"q\\\"{\" 'c' '\\'' 'b r#\"}\"#\n// }\nb'{' br\"{\" r#fn";
    let blank = blank_literals(text);
    assert_eq!(blank.split_whitespace().collect::<Vec<_>>(), ["a", "'b", "b", "r#fn"]);
    assert_eq!(blank.lines().count(), text.lines().count());
}

#[test]
fn import_trees_are_flattened() {
    let paths = tree(&[], "a::{b, c::{d, self}, e as f, g::*}; h");
    let text: Vec<_> = paths.iter().map(|p| p.join("::")).collect();
    assert_eq!(text, ["a::b", "a::c::d", "a::c", "a::e", "a::g"]);
}

#[test]
fn functions_are_measured_from_their_name_to_their_brace() {
    let code =
        "fn a() {\n}\nimpl X { fn b(f: fn(u8), g: [u8; 2]) -> Y\nwhere T: Z {\n{ }\n} }\nfn c();";
    let found: Vec<_> = functions(code).into_iter().map(|f| (f.name, f.line, f.lines)).collect();
    assert_eq!(found, [("a".to_owned(), 1, 2), ("b".to_owned(), 3, 4)]);
}

#[test]
fn test_code_is_told_apart() {
    let source =
        Source::new("x".into(), vec![], "fn a() {}\n#[cfg(test)]\n#[x(y)]\nmod t { fn b() {} }");
    assert_eq!(source.functions().len(), 1);
    assert_eq!(source.all_functions().len(), 2);
    let parent =
        Source::new("x".into(), vec!["m".into()], "#[cfg(test)]\n#[x(y)]\nmod tests;\nfn a() {}");
    assert_eq!(parent.test_modules(), [["m".to_owned(), "tests".to_owned()]]);
}
